from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distqat import config
from distqat.config import RunConfig, Settings
from distqat.data.sources import open_source, source_shape
from distqat.errors import ConfigError
from distqat.model import build
from distqat.sections import ModelSection, Section

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(config.ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def refusal(file: Path | None = None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(file, overrides)
    return caught.value.reason


def test_file_then_environment_then_flags(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("data: {batch: 8, microbatches: 2, sequence: 16}\nrun: {name: mine}")
    monkeypatch.setenv("DISTQAT_DATA__BATCH", "16")
    monkeypatch.setenv("DISTQAT_DATA__MICROBATCHES", "3")
    loaded = config.load(file, ["data.batch=24"])
    assert (loaded.data.batch, loaded.data.microbatches, loaded.data.sequence) == (24, 3, 16)
    assert (loaded.run.name, loaded.run.seed) == ("mine", Settings().run.seed)
    # The file of one load is forgotten by the next.
    assert config.load().run.name == Settings().run.name


def test_structures_by_every_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"width": 12, "dropout": 0.1, "bias": True, "kind": "no", "sizes": [4, 8]}
    file.write_text("model:\n  options: {width: 12, dropout: .1, bias: true, kind: no, sizes: [4, 8]}")
    assert config.load(file).model.options == options
    flag = "model.options={width: 12, dropout: 1e-1, bias: true, kind: no, sizes: [4, 8]}"
    assert config.load(None, [flag]).model.options == options
    assert config.load(None, ["model.options.width=12"]).model.options == {"width": 12}
    json = '{"width": 12, "dropout": 0.1, "bias": true, "kind": "no", "sizes": [4, 8]}'
    monkeypatch.setenv("DISTQAT_MODEL__OPTIONS", json)
    assert config.load().model.options == options


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("monitor.wandb=off", "off"),
        ("optimizer.learning_rate=1e-3", 1e-3),
        ("optimizer.learning_rate=.5", 0.5),
        ("run.name=2026-01-31", "2026-01-31"),
        ("daemon.listen=127.0.0.1:0", "127.0.0.1:0"),
        ("daemon.announce=", ""),
    ],
)
def test_scalars_mean_what_people_write(flag: str, value: object) -> None:
    section, key = flag.partition("=")[0].split(".")
    assert getattr(getattr(config.load(None, [flag]), section), key) == value


def test_unknown_keys_are_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("data: {bach: 8}")
    assert refusal(file) == f"{file}: unknown key 'data.bach'"
    file.write_text("dada: {batch: 8}\n7: 1")
    assert refusal(file) == f"{file}: unknown key 'dada'; unknown key '7'"
    assert refusal(None, "data.bach=8") == "unknown key 'data.bach'"
    assert refusal(None, "dada.batch=8") == "unknown key 'dada'"
    monkeypatch.setenv("DISTQAT_DATA__BACH", "8")
    assert refusal() == "unknown key 'data.bach'"
    monkeypatch.delenv("DISTQAT_DATA__BACH")
    monkeypatch.setenv("DISTQAT_DADA__BATCH", "8")
    assert refusal() == "environment variable DISTQAT_DADA__BATCH: there is no such section"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.batch=many", "data.batch: Input should be a valid integer"),
        ("data.batch=0", "data.batch: Input should be greater than or equal to 1 (got 0)"),
        ("data.batch=1.5", "data.batch: Input should be a valid integer"),
        ("data.microbatches=64", "data: microbatches (64) must not exceed batch (32)"),
        ("model.stages=two", "model.stages"),
        ("model.cuts=[2, 1]", "model: cuts must be 1 growing block indices, the first at least 1"),
        ("model.options={a: {b: 1}}", "model.options.a"),
        ("run.name=a/b", "run.name: String should match pattern"),
        ("run.name=..", "run.name: String should match pattern"),
        ("run.name=.hidden", "run.name: String should match pattern"),
        ("optimizer.name=adam", "optimizer.name: Input should be 'adamw' or 'sgd' (got 'adam')"),
        ("lease.min=10", "lease.min (10.0 s) must be less than sync.max_wait (10.0 s)"),
        (
            "pipeline.recompute=[resnet/2]",
            "pipeline.recompute: no stage is called 'resnet/2'; there are resnet/0, resnet/1",
        ),
        ("wire.overrides=[{stages: gpt/*, gradients: int8}]", "wire.overrides: no stage is called 'gpt/*'"),
        (
            "wire.overrides=[{stages: '*/1', activations: int8, gradients: int8}]",
            "wire.overrides: the last stage sends no activations, and '*/1' names no other",
        ),
        (
            "wire.overrides=[{stages: resnet/0, gradients: int8}]",
            "wire.overrides: the first stage sends no gradients, and 'resnet/0' names no other",
        ),
        ("wire.overrides=[{stages: '*'}]", "wire.overrides.0: names a codec neither of activations nor of gradients"),
        ("daemon.listen=nowhere", "daemon: listen: 'nowhere' is not an address"),
        ("daemon.device=tpu", "daemon.device"),
        ("train.epochs=inf", "train.epochs: Input should be a finite number"),
        ("sync.max_wait=nan", "sync.max_wait: Input should be a finite number"),
        ("data.batch", "--set data.batch: write section.key=value"),
        ("batch=3", "--set batch=3: write section.key=value"),
        ("data..batch=3", "write section.key=value"),
        ("data.batch=[1", "--set data.batch=[1: the value is not YAML"),
    ],
)
def test_bad_values_are_named(flag: str, message: str) -> None:
    reason = refusal(None, flag)
    assert message in reason
    assert "\n" not in reason


def test_a_codec_that_saves_nothing_is_refused() -> None:
    words = "wire: codec bf16 makes fp16 numbers no smaller, and spoils some"
    assert words in refusal(None, "train.precision=fp16", "wire.gradients=bf16")
    assert words in refusal(None, "train.precision=fp16", "wire.overrides=[{stages: '*/0', activations: bf16}]")
    assert "codec fp16" in refusal(None, "train.precision=bf16", "wire.activations=fp16")
    # The samples are fp32 always.
    config.load(None, ["train.precision=bf16", "wire.inputs=fp16", "wire.activations=bf16", "wire.gradients=int8"])


def test_flags_that_contradict_each_other() -> None:
    assert "data.batch.x=2: batch has a value already" in refusal(None, "data.batch=1", "data.batch.x=2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- data", "must hold sections, not a list"),
        (b"data: {", "is not YAML"),
        (b"\xff\xfe\x00", "is not text"),
        (b"data: 3", "data: Input should be"),
        (b"data:", "data: Input should be"),
    ],
)
def test_bad_files_are_named(content: bytes, message: str, file: Path) -> None:
    file.write_bytes(content)
    reason = refusal(file)
    assert reason.startswith(str(file))
    assert message in reason


def test_missing_and_empty_files(file: Path) -> None:
    assert refusal(file) == f"cannot read {file}: No such file or directory"
    file.write_text("# nothing\n")
    assert config.load(file) == config.load()


def test_bad_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTQAT_DATA__BATCH", "many")
    assert "data.batch: Input should be a valid integer" in refusal()
    monkeypatch.delenv("DISTQAT_DATA__BATCH")
    monkeypatch.setenv("DISTQAT_MODEL__OPTIONS", "{")
    assert "model" in refusal()


OPTIONS = st.dictionaries(
    st.text("abc_", min_size=1, max_size=5),
    st.one_of(
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.text(max_size=5),
        st.lists(st.integers(0, 99), max_size=3),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(OPTIONS, st.floats(1e-9, 10), st.integers(0, 2**63))
def test_what_travels_arrives_as_it_was(options: dict[str, int], learning_rate: float, seed: int) -> None:
    base = Settings().run_config()
    sent = RunConfig.model_validate(
        {
            "model": ModelSection(options=dict(options)),
            "optimizer": {"learning_rate": learning_rate},
            "run": {"seed": seed},
        }
    )
    received = RunConfig.from_canonical(sent.canonical())
    assert received == sent
    assert {key: type(value) for key, value in received.model.options.items()} == {
        key: type(value) for key, value in options.items()
    }
    assert received.canonical() == sent.canonical()
    assert received.id == sent.id
    assert (sent.id == base.id) == (sent == base)


def test_the_machines_own_sections_are_not_part_of_the_run() -> None:
    here = config.load(None, ["daemon.device=cuda:1", "monitor.interval=2", "daemon.listen=127.0.0.1:4000"])
    assert here.run_config() == config.load().run_config()
    assert here.run_config().id == config.load().run_config().id
    assert not {"daemon", "monitor"} & set(RunConfig.model_fields)


def test_every_setting_of_the_run_changes_its_digest() -> None:
    other = {"run.seed": "8", "data.batch": "33", "sync.inner_steps": "11", "train.epochs": "31", "lease.min": "4"}
    digests = {config.load(None, [f"{key}={value}"]).run_config().id.digest for key, value in other.items()}
    assert len(digests | {config.load().run_config().id.digest}) == len(other) + 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"data": {"bach": 1}}', '{"daemon": {}}'])
def test_a_received_config_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError):
        RunConfig.from_canonical(text)


def test_the_template_is_current_and_gives_the_defaults() -> None:
    assert (CONFIGS / "template.yaml").read_text() == config.template()
    assert config.load(CONFIGS / "template.yaml") == config.load()


def test_the_template_explains_everything() -> None:
    text = config.template()
    for name, section in Settings.model_fields.items():
        assert f"\n{name}:\n" in text
        kind = section.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        for key, field in kind.model_fields.items():
            assert field.description, f"{name}.{key} has no description"
            assert f"  # {field.description}\n  {key}: " in text


def test_digits_are_the_default() -> None:
    assert config.load(CONFIGS / "digits.yaml") == config.load()


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_loads(name: str) -> None:
    loaded = config.load(CONFIGS / name)
    assert loaded.run_config().id.name == loaded.run.name


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_fits_its_model_to_its_data(name: str) -> None:
    run = config.load(CONFIGS / name).run_config()
    shape = source_shape(run).data
    assert len(build.stage_names(run, shape)) == run.model.stages
    assert run.data.batch % run.data.microbatches == 0
    if run.data.source != "datasets":  # Which lie on the hub; `test_configs.py` has small ones.
        source = open_source(run)
        assert source.shape == shape
        assert len(source.train) > run.data.batch


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["overlap=10"], "sync: overlap (10) must be less than the steps between two rounds, inner_steps / fragments"),
        (["fragments=4", "overlap=2"], "(10 / 4, so 2)"),
        (["fragments=11"], "sync: fragments (11) must not exceed inner_steps (10)"),
        (["eager=true"], "sync: eager needs an overlap: 1 to 10 steps"),
        (["eager=true", "overlap=11"], "sync: overlap (11) must not exceed the steps between two rounds"),
        (["eager=true", "overlap=2", "merge=0.5"], "sync: merge does not go with eager"),
        (["merge=0.5"], "sync: merge needs an overlap"),
        (["budget=0.2"], "sync: budget is for codec auto, which measures what it may send; codec is int8"),
        (["codec=none", "error_feedback=1"], "sync: codec none loses nothing that error_feedback could feed back"),
        (["error_feedback=1.5"], "sync.error_feedback"),
        (["error_feedback=some"], "sync.error_feedback"),
        (["codec=fp8"], "sync.codec: Input should be 'auto', 'none', 'bf16', 'int8', 'int4' or 'int2'"),
    ],
)
def test_rounds_that_could_not_be(settings: list[str], words: str) -> None:
    assert words in refusal(None, *(f"sync.{setting}" for setting in settings))


def test_rounds_that_can_be() -> None:
    config.load(None, ["sync.fragments=5", "sync.overlap=1", "sync.merge=0.5"])
    config.load(None, ["sync.eager=true", "sync.overlap=10"])
    config.load(None, ["sync.codec=auto", "sync.budget=0.2"])
    config.load(None, ["sync.fragments=10"])
