"""The callback that fits the scales of a module before it trains."""

from collections.abc import Collection
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from ..baselines import FrozenModule
from ..data_pass import LoaderRecord, RandomStates, preserve_rng
from ..steps import ScaledModule, ScaledSteps, restores_later, scaler_of
from .checks import (
    check_alone,
    check_averaging,
    check_declared,
    check_fitted,
    check_module,
    check_own_loss,
    check_resumed,
    name_of_tuner,
    raise_for_tuner,
    warn_of_own_scaling,
)
from .fit import fit_missing
from .fit_decision import is_dev_run
from .fit_report import print_fit, report_kept_scales
from .fit_settings import FitSettings
from .picture_report import run_folder, write_report
from .restored_settings import declare_targets
from .scale_steps import move_place, refuse_new_processes, scale_steps
from .validation_targets import ValidationTargets


class TargetScaler(FitSettings, Callback):
    """Fits the scales and the baseline of a module's targets in one pass over the training data.

    The module is a ``LightningModule`` with the :class:`TargetScalingMixin`. With declared targets,
    it may be any other: its steps are then run as :class:`ScaledSteps` does. All processes share
    the pass, which runs before the sanity check and reads each sample of the training loader once,
    through the transfer hooks of module and datamodule. Random states are restored afterwards,
    including those of generators that are attributes of the loader or its parts. Scales that were
    restored from a checkpoint are kept, and no data are read.

    Args:
        enabled: set to ``False`` for scales of 1; the baseline is still subtracted.
        targets: names of the targets to fit, each of which must occur in the data; other
            TensorMaps are ignored. Default: all targets. A mapping declares targets that are plain
            tensors, each as a :class:`PerStructure`, a :class:`PerAtom`, or a dict of their
            arguments with ``per``, ``{"charges": {"per": "atom"}}``. ``forward`` then receives the
            batch of the loader and returns tensors under the same names.
        fixed_scales: per-target scales to use instead of fitted ones, in the units of the data (per
            atom for extensive targets): one number, or one for some or all atomic types (integers
            or chemical symbols), as in ``{"energy": 0.5, "forces": {"H": 0.2, 8: 1.1}}``.
        intensive_targets: names of the per-structure targets that are not divided by the number of
            atoms; in a declaration, ``PerStructure(intensive=True)`` says the same.
        baseline: ``"composition"`` subtracts one contribution per atomic type, ``"none"`` subtracts
            nothing. A module such as :class:`ZBL` is frozen, and its output is subtracted before
            the composition is fitted; see :meth:`Scaler.set_additive` for what it must support.
            A mapping chooses for some targets, ``{"gap": "none"}``; all others have a composition.
        fixed_baseline: contributions per atomic type to use instead of fitted ones, in the units of
            the data, for all types or some of them, as in ``{"energy": {"H": -13.6}}``.
        unseen_types: scale of atomic types that are not in the training data: ``"error"`` raises an
            error, ``"pooled"`` uses the RMS over all types, ``"identity"`` uses 1, and a baseline
            of 0.
        system_labels: meaning of ``system`` in the samples of targets: the ``"position"`` in the
            batch, the ``"id"`` in the dataset, or ``"auto"`` to infer it from the data.
        limit_batches: maximum number of batches to read, evenly spaced over the data. Default: all.
        relative_error: read samples in random order, at least 100 batches, until the standard error
            of every scale, divided by the scale, is estimated to be below this number, such as
            0.01. A target, not a bound: heavy tails are underestimated. Atomic types that are not
            in the sample are unseen types. Default: read all data.
        refit: what to fit again if the module already has scales, from a checkpoint or an earlier
            fit. ``False``: nothing. ``True``: everything, which multiplies what the network has
            learned by new scale / old scale. ``"types"``: scales and contributions are added for
            atomic types that have none; every other number is kept. ``"baseline"``: the scales are
            kept, and the contributions are fitted again (for another level of theory); those of
            types without data are kept.
            ``"scales"``: the contributions and the predictions are kept, and the scales of the
            targets in ``output_layers`` are fitted again.
        against: what ``refit="baseline"`` fits the contributions to: the ``"targets"``, or the
            errors of the module's ``"predictions"``, as a correction.
        output_layers: for ``refit="scales"``, by target name the submodule that predicts this
            target alone and linearly, as in ``{"energy": "readouts.energy"}``: its parameters are
            multiplied by old scale / new scale.
        loss_weights: weights of terms of the default loss: of the values of a target under its
            name, of a gradient under ``energy/positions``; 1 unless given. ``None``: those stored
            with restored scales, or none.
        balance_loss: divide each term of the default loss by its mean square over the training
            data; ``False``: do not, as in metatrain. ``None``: as stored with restored scales, or
            ``True``.
        cache: file in which the statistics of the training data are kept. It is used instead of a
            data pass if it is of the same data, settings and version, and is written after the
            pass if there is none; one line says which, and why. See
            ``data_fingerprint.identify_data`` for the changes of the data that it cannot see.
        batch: for declared targets, addresses in a batch of the ``types`` of all atoms, and of the
            ``structure`` of each atom or the number of atoms ``n_atoms`` of each structure.
            Default: the usual names, batches of PyTorch Geometric, and lists of ASE ``Atoms``.
        units: units in the data, shown in tables and used by :func:`export`: of targets under their
            names, of gradients under ``energy/positions``, as in ``{"energy": "eV",
            "energy/positions": "eV/Å"}``. ``PerStructure(unit="eV")`` says the same.
        at: for a module without a mixin, the submodule whose output holds the predictions, if its
            steps do not call ``forward``.
        report: after a fit, draw scales, data, missing values and mean squares of the terms of the
            loss, as PNG files in the folder of the logger (without one: ``default_root_dir``) and
            in TensorBoard or W&B; log the scales, ``scale/forces/O``, and at each validation the
            RMS of its targets in loss space, ``val/rms/energy``. Needs matplotlib.

    Raises:
        ModuleNotFoundError: if ``report`` is set and matplotlib is not installed.
        TypeError: if ``baseline`` is a class, names are given as one string, or the module does not
            have a mixin and no targets are declared.
        ValueError: if an argument has an unknown value, or arguments contradict each other, the
            data, or restored scales.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = TargetScaler(fixed_scales={"forces": {"1": 2, "8": 0.5}})
        >>> trainer = Trainer(accelerator="cpu", callbacks=[callback], logger=False)
        >>> callback
        TargetScaler(fixed_scales={'forces': {1: 2.0, 8: 0.5}})

        Batches have ``energy``, ``forces`` and ``dipole`` as plain tensors, and so has the output
        of ``forward``:

        >>> from lightning_scaler import PerStructure
        >>> energy = PerStructure(gradients={"positions": "-forces"})
        >>> dipole = PerStructure(components="xyz", intensive=True)
        >>> trainer = Trainer(
        ...     accelerator="cpu",
        ...     callbacks=[TargetScaler(targets={"energy": energy, "dipole": dipole})],
        ...     logger=False,
        ... )
    """

    _scales_kept = False
    # Names of the targets whose scales were kept, until the first batch.
    _to_report: Collection[str] = ()
    _validation: ValidationTargets
    _states_at_train_start: RandomStates | None = None
    _before_dev_run: dict[str, Any] | None = None
    # From the start of a fit until its scales are there.
    _record: LoaderRecord | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict begins.

        Checks the module, gives its scaler the additive module, and moves this callback before
        those that train in their own ``on_fit_start``.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        check_alone(callbacks)
        check_averaging(callbacks, self.refit)
        if self.declaration is not None and not isinstance(pl_module, ScaledModule):
            scale_steps(trainer, pl_module, self, self.at)
        elif self.at != "forward":
            move_place(pl_module, self.at)
        scaler = check_module(pl_module)
        if self.additive is not None:
            if scaler.additive is not None and scaler.additive.needs_module(self.additive):
                scaler.set_additive(self.additive)
            elif not scaler.fitted:
                # The weights may come from a checkpoint.
                scaler.additive = FrozenModule(self.additive)
        self._scales_kept, self._to_report = False, ()
        self._validation = ValidationTargets(self.report)
        self._forget_record()
        self._states_at_train_start = None
        declare_targets(scaler, self)
        callbacks.insert(0, callbacks.pop(callbacks.index(self)))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit begins. Fits the scales, unless a checkpoint is restored later."""
        check_resumed(trainer, self.against)
        if isinstance(pl_module, ScaledSteps):
            check_own_loss(pl_module, self.loss_weights, self.balance_loss)
            warn_of_own_scaling(pl_module)
        self._record = LoaderRecord(trainer)
        tuner = name_of_tuner(trainer)
        if not restores_later(trainer):
            states = RandomStates()
            self._fit_if_needed(trainer, pl_module)
            if tuner == "LearningRateFinder" and not self._scales_kept:
                # The tuner undoes its random draws; without this callback, those of the loader too.
                self._states_at_train_start = states
        elif tuner and not check_module(pl_module).fitted:
            raise_for_tuner(trainer, tuner)

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the sanity check begins. Fits the scales if ``on_fit_start`` was too early.

        With a checkpoint, the state of the training is restored after ``on_fit_start``.
        """
        if self._record is not None:
            self._fit_if_needed(trainer, pl_module)
            if not self._scales_kept:
                # Lightning restores the random states after the sanity check.
                self._states_at_train_start = RandomStates()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training begins. Fits the scales if there was no sanity check either."""
        self._fit_if_needed(trainer, pl_module)
        if self._states_at_train_start is not None:
            self._states_at_train_start.restore()
            self._states_at_train_start = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called before every training batch. Reports on the first one if scales were kept."""
        kept, self._to_report = self._to_report, ()
        if kept and trainer.is_global_zero:
            with preserve_rng([]):
                module = cast(ScaledModule, pl_module)
                far = report_kept_scales(module, batch, kept, read_data=not self._scales_kept)
            self._validation.leave_out(far)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when fit ends. Undoes what ``refit`` took from the batches of a dev run."""
        self._undo_dev_run(pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called when fit, validate, test or predict ends. Forgets the mode before evaluations.

        The next one may fail before Lightning notes it again.
        """
        _mode_before_evaluation(trainer, stage).mode.clear()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Called when a run fails. Undoes a dev run, and what an evaluation did to the module."""
        unscaled = self.declaration is not None and not isinstance(pl_module, ScaledModule)
        if unscaled and isinstance(exception, Exception):
            refuse_new_processes(trainer, pl_module)
        before = _mode_before_evaluation(trainer, trainer.state.fn)
        if trainer.evaluating or trainer.sanity_checking or trainer.predicting:
            # Lightning does so only at the end: what is trained next would be in evaluation mode.
            before.restore(pl_module)
        before.mode.clear()
        ValidationTargets.detach(cast(ScaledModule, pl_module))
        self._undo_dev_run(pl_module)
        self._forget_record()

    def _undo_dev_run(self, pl_module: LightningModule) -> None:
        if self._before_dev_run is not None:
            scaler_of(cast(ScaledModule, pl_module)).set_extra_state(self._before_dev_run)
            self._before_dev_run = None

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when validation begins. Raises an error if there are no scales."""
        declare_targets(check_fitted(trainer, pl_module), self)
        self._validation.start(trainer, cast(ScaledModule, pl_module), self._to_report)

    @override
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called before every validation batch.

        Passes its targets to the checks of validation, if the module does not do so itself.
        """
        module = cast(ScaledModule, pl_module)
        self._validation.start_batch(trainer, module, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when a validation epoch ends. With ``report``, logs the RMS of each target."""
        found = self._validation.rms(trainer, cast(ScaledModule, pl_module))
        if found:
            # The same on all processes: their mean only keeps Lightning from a warning.
            pl_module.log_dict(found, sync_dist=True, add_dataloader_idx=False)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when validation ends. Warns if the data of the first one do not suit the scales.

        The same after the sanity check.
        """
        self._validation.finish(trainer, cast(ScaledModule, pl_module))

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when testing begins. Raises an error if there are no scales."""
        declare_targets(check_fitted(trainer, pl_module), self)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when prediction begins. Raises an error if there are no scales."""
        declare_targets(check_fitted(trainer, pl_module), self)

    def _fit_if_needed(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._record is None:
            return
        module = cast(ScaledModule, pl_module)
        declare_targets(scaler_of(module), self)
        check_declared(module)
        # Parameters that absorb new scales would no longer suit the scales from before.
        if is_dev_run(trainer) and self.refit in ("types", "baseline"):
            self._before_dev_run = scaler_of(module).state()
        try:
            result = fit_missing(trainer, module, self, self._record)
        finally:
            self._forget_record()
        self._scales_kept, scaler = result is None, scaler_of(module)
        self._to_report = scaler.targets.keys() - (result.fitted if result else set())
        if result is not None and trainer.is_global_zero:
            folder = None if is_dev_run(trainer) else run_folder(trainer)
            print_fit(scaler, self._to_report, result.changes, result.precision, folder)
            if result.sample is not None:
                write_report(trainer, scaler, result.sample)

    def _forget_record(self) -> None:
        if self._record is not None:
            self._record.close()
        self._record = None


def _mode_before_evaluation(trainer: Trainer, stage: str | None) -> Any:
    """The parts of the module in training mode, as Lightning notes them before an evaluation."""
    loops: dict[str | None, Any] = {
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }
    return loops.get(stage, trainer.fit_loop.epoch_loop.val_loop)._module_mode
