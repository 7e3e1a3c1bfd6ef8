"""The papers' tables: what each is made of, the papers' figures, and where ours deviate.

A table is parts (what is trained, by the studies that notebooks use, with what it costs) and cells (a figure of the paper,
and the parts, one a seed, that give ours).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

from dfkd_lib import datasets, presets
from dfkd_lib.core import Artifact, Config, Store, WorkbenchError
from dfkd_lib.distill import ClassificationConfig, EarlyConfig, Study, TitnConfig, comparison, titn
from dfkd_lib.distill.early import ARMS
from dfkd_lib.distill.scores import SCORES, gigaflops, scores
from dfkd_lib.metrics import check_inception
from dfkd_lib.reporting import figures
from dfkd_lib.reporting.papers import TABLES, paper_number
from dfkd_lib.reporting.parts import Cell, Given, Made, Part
from dfkd_lib.synthesis import CGAN
from dfkd_lib.training import Effort, read_shipped

SPACES = {"classifier": "own classifier", "teacher": "teacher's tokens", "inception": "Inception"}
LAMBDAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)


def configuration(name: str, preset: str, data: str, overrides: str = "") -> Config:
    """The settings of a table: the preset's, the data set's profile over them, then overrides."""
    table = TABLES[name]
    choice = {"data.validation": 0.1} if table.choice else {}
    return presets.load(table.method, preset, overrides, data=data, **choice)


def open_table(name: str, store: Store, config: Config) -> Made:
    """A table's parts and cells; WorkbenchError if its data are not there."""
    sets = datasets.load_splits(config.data)
    return BUILDERS[name](Given(store, config, presets.data_set(config.data.name), *sets))


# -- paper A ---------------------------------------------------------------------------------------------------------


def _teacher(given: Given) -> Part:
    study, teacher = Study(given.store, given.config), given.config.teacher
    if teacher.source == "shipped":
        return Part(lambda: [study.teacher], (given.looking(teacher.model, len(given.test_set)),))
    passes = (teacher.images or len(given.train_set)) * teacher.epochs
    efforts = [given.learning(teacher.model, passes, teacher, "teacher.batch_size")]
    if teacher.guide:
        guide = read_shipped(teacher.guide)[1]["model"]
        efforts.append(given.looking(guide, passes, teacher.precision))
    return Part(lambda: [study.teacher], tuple(efforts))


def _pair(given: Given) -> Made:
    """A Tables 4, 5: teacher and student on true and on synthetic data, by Algorithm 1."""
    config: ClassificationConfig = given.config
    study, teacher = Study(given.store, config), config.teacher.model
    names = {"study": study, "cfg": config, "step": config.weights}
    made = Made(config, {"teacher": _teacher(given)})
    images = {
        "real": min(config.real_images, len(given.train_set)),
        "synthetic": config.synthetic_images,
    }
    gan = tuple(given.gan(config.gan, config.train_images, teacher))
    made.parts["GAN"] = Part(lambda: study.images("synthetic")[1], gan, ("teacher",))
    for name, task in presets.tasks("classification")(names).items():
        source = "synthetic" if "synthetic" in name else "real"
        needs = ("teacher",) if source == "real" else ("teacher", "GAN")
        many = images[source]
        if name.startswith("teacher"):
            passes = many * config.teacher_synthetic_epochs
            efforts = (given.learning(teacher, passes, config.teacher, "teacher.batch_size"),)
        else:
            student, batch, kind = config.student, "student.batch_size", config.student.augmentation
            if source == "synthetic":
                kind = config.synthetic_augmentation or kind
            stored = (kind, student.mix, student.erase) == ("none", "none", 0)
            once = student.images or many
            passes = once * student.epochs
            efforts = (
                given.learning(student.model, passes, student, batch),
                given.looking(teacher, once if stored else passes, student.precision),
            )
        made.parts[name] = Part(partial(_alone, task), efforts, needs)
    made.figures = figures.of_pair(given, study, made.parts)
    for source, column in (("real", "true data"), ("synthetic", "synthetic")):
        for who in ("teacher", "student"):
            paper, _ = paper_number(given.data, f"{who}_{source}_accuracy")
            parts = [n for n in made.parts if n.startswith(f"{who}, {source}")]
            note = "each seed on the same images"
            if who == "teacher":
                parts = ["teacher"] if source == "real" else parts
                note = "" if source == "real" else "its architecture on the GAN's images and labels"
                note = note if parts else "left out: teacher_synthetic_epochs is 0 in this preset"
            cell = Cell(who, column, tuple(parts), paper=paper and 100 * paper, note=note)
            made.cells.append(cell)
    return made


def _alone(task: Callable[[], Artifact]) -> list[Artifact]:
    return [task()]


def _gans(given: Given, lambdas: Sequence[float] = ()) -> Made:
    """A Table 2: both GANs at equal epochs, in each feature space; or the distance against λ."""
    config, teacher = given.config, given.config.teacher.model
    arms = {f"λ = {lam:g}": config.gan.replace(lam=lam) for lam in lambdas}
    arms = arms or comparison.arms(config.gan)
    first = Study(given.store, config)
    judge = Part(lambda: [first.reference], (given.judge(config.feature),), ("teacher",))
    made = Made(config, {"teacher": _teacher(given), "judge": judge})
    missing = ""
    try:
        check_inception(config.feature.download)
    except WorkbenchError as error:
        missing = f"not measured: {error.what}; {error.fix}"
    # Inception is the last: without it the others keep their places.
    spaces = [space for space in SPACES if not (missing and space == "inception")]
    studies = [Study(given.store, config.override({"feature.space": one})) for one in spaces]
    images = min(config.claim_images or config.train_images, len(given.train_set))
    for arm, gan in arms.items():
        efforts = tuple(given.gan(gan, images, teacher))
        for seed in config.seeds:
            make = partial(_distances, studies, gan, seed)
            made.parts[f"{arm}, seed {seed}"] = Part(make, efforts, ("teacher", "judge"))
    if not lambdas:
        made.figures = figures.of_gans(given, first, made.parts, arms)
    for arm, (place, (space, title)) in product(arms, enumerate(SPACES.items())):
        parts = tuple(f"{arm}, seed {seed}" for seed in config.seeds)
        paper, note = None, "the paper's is of Inception"
        if space == "inception":
            paper, note = paper_number(given.data, f"frechet_{arm}")[0], missing
            parts = () if missing else parts
        column = f"Fréchet distance, {title}"
        made.cells.append(Cell(arm, column, parts, partial(_distance, place), paper, note))
    return made


def _distances(studies: Sequence[Study], gan: CGAN, seed: int) -> list[Artifact]:
    """One GAN, measured in every space: its training, then the measures."""
    found = [comparison.one_gan(study, gan, seed) for study in studies]
    return [found[0]["trained"], *(one["measures"] for one in found)]


def _distance(place: int, made: list[Artifact]) -> float:
    return made[1 + place].metrics["frechet"]


def _cnn(given: Given, config: EarlyConfig | TitnConfig) -> Part:
    """The CNN that B's and C's students learn from; a shipped one is only tested."""
    sets, feature = (given.train_set, given.test_set), config.feature
    if feature.source == "shipped":
        effort = given.looking(feature.architecture, len(given.test_set))
    elif isinstance(config, EarlyConfig) or config.recipe == "short":
        effort = given.judge(feature)
    else:
        passes = min(feature.images, len(given.train_set)) * feature.epochs
        effort = given.learning(feature.model, passes, config.training(), "batch_size")
    return Part(lambda: [config.teacher(given.store, *sets)], (effort,))


# -- paper B ---------------------------------------------------------------------------------------------------------


def _early(given: Given) -> Made:
    """B: accuracy against the share of the images; at all of them every arm, which differ in one thing each."""
    config: EarlyConfig = given.config
    store, sets = given.store, (given.train_set, given.test_set)
    made = Made(config, {"teacher": _cnn(given, config)})

    def make(arm: str, share: float, seed: int) -> list[Artifact]:
        pool, (teacher,) = sets[0].sample(config.images, 5), made.parts["teacher"].make()
        return config.run(store, arm, teacher, pool, sets[1], share, seed)[::-1]

    shares = sorted(config.shares)
    for arm, share in product(ARMS, shares):
        if share < shares[-1] and arm not in ("DearKD", "plain"):
            continue
        parts = {f"{arm}, {100 * share:g} %, seed {seed}": seed for seed in config.seeds}
        for name, seed in parts.items():
            work = partial(make, arm, share, seed)
            made.parts[name] = Part(work, tuple(_early_efforts(given, arm)), ("teacher",))
        note = "as many image passes as every other"
        made.cells.append(Cell(arm, f"{100 * share:g} % of the images", tuple(parts), note=note))
    for row, intra in {"DF-DearKD": True, "DF-DearKD without intra-divergence": False}.items():
        _data_free(given, made, row, intra)
    made.cells.insert(0, Cell("CNN teacher", "100 % of the images", ("teacher",)))
    return made


def _data_free(given: Given, made: Made, row: str, intra: bool) -> None:
    """DF-DearKD: DearKD on images that the CNN's inversion gives."""
    config: EarlyConfig = given.config
    store, test_set, count = given.store, given.test_set, config.inversion_images

    def make(seed: int | None = None) -> list[Artifact]:
        (teacher,) = made.parts["teacher"].make()
        images, source = config.inverted(store, teacher, test_set, intra)
        if seed is None:
            return [source]
        stages = config.run(store, "DearKD", teacher, images, test_set, 1.0, seed, parents=[source])
        return stages[::-1]

    looks = given.looking(config.feature.architecture, 3 * count * config.inversion.steps)
    made.parts[f"{row}: images"] = Part(make, (looks,), ("teacher",))
    for seed in config.seeds:
        efforts = tuple(_early_efforts(given, "DearKD"))
        part = Part(partial(make, seed), efforts, ("teacher", f"{row}: images"))
        made.parts[f"{row}, seed {seed}"] = part
    parts = tuple(f"{row}, seed {seed}" for seed in config.seeds)
    note = f"{count:,} images inverted from the CNN, which saw real ones"
    made.cells.append(Cell(row, "no real image", parts, note=note))


def _early_efforts(given: Given, arm: str) -> Iterator[Effort]:
    config, how = given.config, ARMS[arm]
    model, overrides = config.architecture(how)
    yield given.learning(model, config.passes, config, "batch_size", overrides)
    if how.distils:
        passes = config.passes * (config.first_stage if how.stages == 2 else 1)
        yield given.looking(config.feature.architecture, passes, config.precision)


# -- paper C ---------------------------------------------------------------------------------------------------------


def _titn(given: Given, names: Sequence[str] = tuple(titn.ROWS)) -> Made:
    """C Tables 3-5: every model from each seed."""
    config: TitnConfig = given.config
    made = Made(config, {"teacher": _cnn(given, config)})
    paper = titn.PAPER.get(given.data, {})
    students = {name: one for name, one in config.students().items() if name in names}
    tasks = presets.tasks("titn")(
        {"store": given.store, "cfg": config, "students": students, "step": None}
    )
    for name, task in tasks.items():
        row = name.rpartition(", seed ")[0]
        efforts = tuple(_titn_efforts(given, row, students[row]))
        made.parts[name] = Part(partial(_alone, task), efforts, ("teacher",))
    for row in ("teacher", *students):
        parts = tuple(name for name in made.parts if name.startswith(f"{row}, seed "))
        numbers = paper.get(row, ())
        for place, (key, title) in enumerate(SCORES.items()):
            if place < max(map(len, paper.values()), default=2):
                known = numbers[place] if place < len(numbers) else None
                cell = Cell(row, title, parts or ("teacher",), partial(_score, key), known)
                made.cells.append(cell)
        cost = titn.PAPER_COST.get(row)
        known = cost[0] / 1024 if cost and given.data == "cifar100" else None
        made.cells.append(Cell(row, "GMACs", (parts or ("teacher",))[:1], _gmacs, known))
    return made


def _titn_efforts(given: Given, row: str, student) -> Iterator[Effort]:
    config = given.config
    passes = (config.images or len(given.train_set)) * student.epochs
    overrides = config.overrides(row, given.train_set.shape[1])
    yield given.learning(student.model, passes, student, "batch_size", overrides)
    if row not in titn.ONE_HEAD:
        yield given.looking(config.feature.architecture, passes, student.precision)


def _score(key: str, made: list[Artifact]) -> float:
    return 100 * scores(made[0])[key]


def _gmacs(made: list[Artifact]) -> float:
    return gigaflops(made[0]) / 2


def _drop(given: Given) -> Made:
    """C Table 6: what is lost from the teacher to TITN."""
    made = _titn(given, ("TITN",))
    parts = tuple(name for name in made.parts if name != "teacher")
    before, after = titn.PAPER_DROP if given.data == "cifar10" else (None, None)

    def difference(student: list[Artifact]) -> float:
        (teacher,) = made.parts["teacher"].make()
        return 100 * (student[0].metrics["accuracy"] - teacher.metrics["accuracy"])

    lost = None if before is None else after - before
    made.cells = [
        Cell("teacher", "top-1 before", ("teacher",), paper=before),
        Cell("TITN", "top-1 after", parts, paper=after),
        Cell("TITN", "difference", parts, difference, lost),
    ]
    return made


def _teachers(given: Given) -> Made:
    """C Table 2 and Figure 5: the CNNs that a teacher is chosen from, and the chosen one by each optimizer."""
    config: TitnConfig = given.config.override({"feature.source": "train"})
    names = titn.PAPER_TEACHERS
    if config.scale == "small":
        names = dict.fromkeys(("cnn_small", "resnet11"), (None, None))
    made = Made(config)

    def add(row: str, changed: TitnConfig, figures: Sequence[float | None], note: str = "") -> None:
        made.parts[row] = _cnn(given, changed)
        for (key, title), paper in zip(SCORES.items(), figures, strict=False):
            made.cells.append(Cell(row, title, (row,), partial(_score, key), known(paper), note))

    def known(paper: float | None) -> float | None:
        return paper if given.data == "cifar100" else None

    for name, scored in names.items():
        add(name, config.override({"feature.model": name}), scored)
    for optimizer, figure in titn.PAPER_OPTIMIZERS.items():
        lr = config.lr if optimizer == config.optimizer else 0.1 if optimizer == "sgd" else 1e-3
        changed = config.replace(recipe="paper", optimizer=optimizer, lr=lr)
        row, note = f"{config.feature.model}, {optimizer}", f"{optimizer}, learning rate {lr:g}"
        add(row, changed, (figure,), note)
    return made


# Name of a table of `papers.TABLES` -> what builds it of its configuration and data.
BUILDERS: dict[str, Callable[[Given], Made]] = {
    "A2": _gans,
    "A2L": partial(_gans, lambdas=LAMBDAS),
    "A4": _pair,
    "A5": _pair,
    "B": _early,
    "C2": _teachers,
    "C3": _titn,
    "C4": _titn,
    "C5": _titn,
    "C6": _drop,
}
