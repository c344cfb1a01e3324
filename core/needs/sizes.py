"""Give the bytes of each thing that a run holds or writes, from the shapes of the model and from what its parts say."""

from collections.abc import Sequence

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.adapter_answers import max_length_of
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.protocols import LossStatistic
from ecoflap.core.forward.observation import bytes_of_statistic
from ecoflap.core.forward.recomputed import weights_are_shared
from ecoflap.core.model.anatomy import Anatomy, Layer
from ecoflap.core.model.mapped_weights import MappedFile
from ecoflap.core.model.parameter_masks import parameter_and_part
from ecoflap.core.model.source import files_read
from ecoflap.core.preparing.prepared import Prepared
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import CalibrationKeys


def parameters_of(prepared: Prepared) -> int:
    """Count the weights of the model."""
    return sum(parameter.numel() for parameter in prepared.model.parameters())


def samples_of(keys: CalibrationKeys) -> int | None:
    """Give how many samples a dataset yields; None where that shows only when it is read."""
    samples: int | None = keys.data.options.samples
    return samples


def batches_of(keys: CalibrationKeys) -> int:
    """Give how many batches the samples of a dataset make; 0 where that shows only when it is read."""
    return -(-(samples_of(keys) or 0) // keys.batch_size)


def tokens_of_sample(prepared: Prepared, keys: CalibrationKeys) -> int:
    """Give how many tokens a sample has; 0 where that shows only when it is read."""
    longest = max_length_of(prepared.adapter, prepared.model)
    with blaming(f"the dataset {keys.data.use}, asked for its tokens,"):
        tokens: int | None = keys.data.options.tokens_per_sample(longest)
    return tokens or 0


def bytes_of_weight(prepared: Prepared) -> int:
    """Give how many bytes a weight takes as the model is read."""
    return int(prepared.dtype.itemsize)


def bytes_of_activation(prepared: Prepared) -> int:
    """Give how many bytes a number takes that a block gives."""
    return int((prepared.held_in or prepared.dtype).itemsize)


def largest_block(anatomy: Anatomy) -> int:
    """Count the prunable weights of the block that has most."""
    return max(sum(layer.size for layer in layers) for layers in anatomy.layers_of.values())


def bytes_of_blocks(prepared: Prepared) -> int:
    """Give the bytes of all weights of blocks of which any is pruned."""
    pruned = {layer.name for pool in prepared.pools for _, layer in pool.layers}
    blocks = {block.name: block.module for block, layer in prepared.anatomy.layers() if layer.name in pruned}
    parameters = {id(one): one.numel() for module in blocks.values() for one in module.parameters()}
    return bytes_of_weight(prepared) * sum(parameters.values())


def bytes_in_block_files(prepared: Prepared) -> int:
    """Give the bytes of the finished blocks of all rounds: masks, and weights where more than their mask changes them.

    Refiners train those of the last round alone.
    """
    rounds, refiners, pruners = prepared.recipe.round_count, prepared.block_refiners, prepared.pruners
    weights = 0
    for block, layer in (pair for pool in prepared.pools for pair in pool.layers):
        is_refined = bool(refiners[block.tower]) and not prepared.anatomy.is_outside(block)
        weights += layer.size * (rounds if pruners[block.tower].options.changes_weights else is_refined)
    return rounds * (prepared.size // 8) + weights * bytes_of_weight(prepared)


def bytes_of_statistics(prepared: Prepared) -> int:
    """Give the bytes of the statistics of the block that needs most.

    It is an upper bound: layers that share an input share its statistics, and are counted one by one.
    """
    pruners = prepared.pruners
    return max(
        sum(
            bytes_of_statistic(statistic, *layer.shape)
            for layer in prepared.anatomy.layers_of[block.name]
            for statistic in pruners[block.tower].options.needs
        )
        for block in prepared.anatomy.blocks
    )


def bytes_of_solving(prepared: Prepared) -> int:
    """Give the bytes of what pruners hold while they prune the layer that takes most, beside its statistics."""
    pruners = prepared.pruners
    layers = [(block.tower, *layer.shape) for block, layer in prepared.anatomy.layers()]
    found = 0
    for tower, outputs, inputs in set(layers):
        part = pruners[tower]
        with blaming(f"the pruner {part.use}, asked how many numbers it holds,"):
            found = max(found, part.options.held_numbers(outputs, inputs))
    return 4 * found


def bytes_of_gradients(prepared: Prepared) -> int:
    """Give the bytes of what pruners ask of the loss' gradient: a number for each weight, in a file."""
    return sum(
        4 * layer.size
        for block, layer in prepared.anatomy.layers()
        for statistic in prepared.pruners[block.tower].options.needs
        if issubclass(statistic, LossStatistic)
    )


def _positions(prepared: Prepared) -> int:
    """Give how many tokens the calibration data have in all; 0 where that shows only when they are read."""
    keys = prepared.recipe.calibration
    return 0 if keys is None else (samples_of(keys) or 0) * tokens_of_sample(prepared, keys)


def bytes_of_record(prepared: Prepared, width: int | None = None) -> int:
    """Give the bytes of what replay records: of each tower one output a sample, which the next block reads, and of a
    batch what blocks hand on beside that.

    :param width: Bytes of a number; those of what a block gives by default.
    """
    towers = prepared.anatomy.towers
    hidden = max(prepared.anatomy.layers_of[tower.blocks[0].name][0].shape[1] for tower in towers)
    numbers = _positions(prepared) * hidden * len(towers) + _handed_on(prepared)
    return numbers * (width or bytes_of_activation(prepared))


def _handed_on(prepared: Prepared) -> int:
    keys = prepared.recipe.calibration
    if keys is None:
        return 0
    batches, tokens = batches_of(keys), tokens_of_sample(prepared, keys)
    options, names = prepared.adapter_options, [tower.name for tower in prepared.anatomy.towers]
    with blaming(f"the adapter {type(prepared.adapter).__name__}, asked what its blocks hand on,"):
        return batches * sum(options.handed_on(prepared.model, name, tokens) for name in names)


def bytes_inside_blocks(prepared: Prepared) -> int:
    """Give the bytes of what is kept inside a block for its refiners: what each sub-block gave, and one is given now.

    A sub-block gives as many numbers a token as its last layer, and is given as many, in float32, as its first takes.
    """
    asked = [found for of_blocks in prepared.subblocks_asked.values() for found in of_blocks.values() if found]
    width = bytes_of_activation(prepared)
    targets = max(len(prepared.targets_asked), 1)
    given = [targets * width * sum(one.layers[-1].shape[0] for one in found) for found in asked]
    taken = [4 * max(one.layers[0].shape[1] for one in found) for found in asked]
    return _positions(prepared) * max(map(sum, zip(given, taken, strict=True)), default=0)


def bytes_of_scorer(prepared: Prepared) -> tuple[int, int]:
    """Give the bytes of what the scorer holds for itself, and of what it has kept where the record is."""
    if not prepared.looks_at_scores or prepared.recipe.score is None:
        return 0, 0
    scorer = prepared.recipe.score.scorer
    with blaming(f"the scorer {scorer.use}, asked how many numbers it holds and records,"):
        held: int = scorer.options.held_numbers(prepared.anatomy)
        recorded: int = scorer.options.recorded_numbers(prepared.anatomy)
    return 4 * held, 4 * recorded


def bytes_of_weight_scores(prepared: Prepared) -> int:
    """Give the bytes of the scorer's numbers, where it gives one for each weight."""
    score = prepared.recipe.score
    if score is None or not prepared.looks_at_scores or score.scorer.options.gives != "weights":
        return 0
    return 4 * sum(pool.size for pool in prepared.pools if not isinstance(pool.sparsity, Pattern))


def bytes_remembered(prepared: Prepared) -> list[int]:
    """Give the bytes that each evaluator remembers of the dense model at most, as far as no data have to be read."""
    found = []
    for part in prepared.recipe.evaluate:
        with blaming(f"the evaluator {part.use}, asked how much it remembers,"):
            found.append(part.options.remembered_bytes(prepared.context))
    return [size for size in found if size is not None]


def bytes_of_refining(prepared: Prepared, *, in_files: bool = False) -> int:
    """Give the bytes of what refiners hold of a block, or of the whole model, beside the model itself.

    The activations of the batch that is trained on come on top: they depend on how the model's library computes them.

    :param in_files: Whether what is held of the whole model lies in files, as :func:`bytes_trained_in_files` says.
    """
    width = bytes_of_weight(prepared)
    if prepared.model_refiners and not in_files:
        layers = [layer for pool in prepared.pools for _, layer in pool.layers]
        widened = 4 * (parameters_of(prepared) - prepared.size) if width < 4 else 0
        return _bytes_of_training(layers, prepared.model_refiners, width) + widened
    return max(bytes_of_refining_a_block(prepared), _bytes_passing(prepared) if prepared.model_refiners else 0)


def bytes_of_refining_a_block(prepared: Prepared) -> int:
    """Give the bytes of what refiners hold of the block of which they hold most."""
    width, refiners = bytes_of_weight(prepared), prepared.block_refiners
    inside = [tower for tower in prepared.anatomy.towers if not tower.outside]
    blocks = [(prepared.anatomy.layers_of[block.name], tower.name) for tower in inside for block in tower.blocks]
    return max((_bytes_of_training(layers, refiners[tower], width) for layers, tower in blocks), default=0)


def _bytes_passing(prepared: Prepared) -> int:
    """Give the bytes that a model's refiner holds for a moment while what it trains lies in files.

    Those are some numbers in float32 for each weight of a matrix, as its gradient before and behind the mask, and what
    autocast makes narrower, of the block that runs or of all where several calls share a weight.
    """
    largest = max(layer.parameter.numel() for _, layer in prepared.anatomy.layers())
    shared = weights_are_shared(prepared.anatomy.blocks)
    return 4 * 4 * largest + 2 * (prepared.size if shared else largest_block(prepared.anatomy))


def bytes_trained_in_files(prepared: Prepared) -> int:
    """Give the bytes of what a model's refiners train, and hold of it, of a model that stays in its files.

    By Adam those are four numbers in float32 a weight: its value, its gradient and two moments. From the second refiner
    on there is what the one before has left, too. Beside them are masks, what else of the model is widened, and what
    each block was given of the batch that is trained on.
    """
    keys = prepared.recipe.calibration
    if not prepared.model_refiners or keys is None:
        return 0
    numbers = 4 * (4 if len(prepared.model_refiners) == 1 else 5)
    layers = [layer for pool in prepared.pools for _, layer in pool.layers]
    trained = sum((numbers + (1 if layer.part is None else 3)) * layer.size for layer in layers)
    widened = 4 * (parameters_of(prepared) - prepared.size) if bytes_of_weight(prepared) < 4 else 0
    batches = max(1, batches_of(keys))
    blocks = max(len(tower.blocks) for tower in prepared.anatomy.towers)
    return trained + widened + blocks * bytes_of_record(prepared, 4) // batches


def _bytes_of_training(layers: Sequence[Layer], refiners: Sequence[PartSpec], width: int) -> int:
    """Give the bytes of what refiners hold of layers, one refiner after another.

    By Adam those are four numbers a weight: its value in float32, or of one that is in float32 already what it was
    before; its gradient; and two moments. From the second refiner on there is what the one before has left, too. Beside
    them are a mask, another of what is a part of a parameter, and dense weights where one of a block looks at these;
    those of the whole model are held from the beginning.

    :param width: Bytes of a weight of the model.
    """
    if not refiners:
        return 0
    numbers = 4 * (4 if len(refiners) == 1 else 5)
    dense = width if any(one.options.dense_weights and one.options.scope == "block" for one in refiners) else 0
    return sum((numbers + 1 + (layer.part is not None) + dense) * layer.size for layer in layers)


def bytes_put_together(prepared: Prepared) -> int:
    """Give the bytes of weights that the library makes of several in the model's files, such as all experts of a layer.

    Those are parameters of many parts that none of the files has under a name that ends alike. Of a model that is not
    here yet all are taken for such.
    """
    parts = [layer for _, layer in prepared.anatomy.layers() if layer.part is not None]
    whole = {parameter_and_part(layer.name)[0]: layer.parameter for layer in parts}
    if not whole:  # no header has to be read for it
        return 0
    files = [file for file in files_read(prepared.source) if file.suffix == ".safetensors"]
    stored = {_end_of(name) for file in files for name in MappedFile(file).places}
    made = [one for name, one in whole.items() if _end_of(name) not in stored]
    return bytes_of_weight(prepared) * sum(one.numel() for one in made)


def bytes_in_scratch(prepared: Prepared) -> int:
    """Give the bytes of what a model that stays in its files begins with beside them: its weights in another type, or
    those that the library puts together.
    """
    if prepared.dtype != prepared.dtype_of_files:
        return parameters_of(prepared) * bytes_of_weight(prepared)
    return bytes_put_together(prepared)


def _end_of(name: str) -> str:
    """Give what of a weight's name is left where a library calls the modules around it otherwise."""
    return ".".join(name.split(".")[-2:])


def bytes_of_steps(prepared: Prepared) -> int:
    """Give the bytes of a model's refiner's weights and two moments in float32, twice while they are written anew.

    How long it takes is not known: none of these are there where it takes less than two minutes.
    """
    return 24 * prepared.size if prepared.model_refiners else 0


def bytes_left_by_refiners(prepared: Prepared) -> int:
    """Give the bytes of what a refiner of the whole model leaves to the next one, in float32."""
    return 4 * prepared.size if len(prepared.model_refiners) > 1 else 0
