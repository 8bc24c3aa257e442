"""Plan files: they round-trip, and whatever is wrong with one is named."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipert
from pipert import planfile, schedules
from pipert.plan import canonical_json

SCHEMA = json.loads((Path(pipert.__file__).parent / "plan.schema.json").read_text())


@pytest.fixture(scope="module")
def plan():
    return pipert.compile(schedules.build("zb-h1", num_ranks=3, num_microbatches=4))


@pytest.fixture
def file(plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    return path


def refused(path, message, error_class=pipert.PlanError):
    with pytest.raises(error_class) as error:
        pipert.Plan.load(path)
    assert re.fullmatch(message, str(error.value), re.DOTALL), str(error.value)


@pytest.mark.parametrize("name", schedules.names())
def test_round_trip(name, tmp_path):
    plan = pipert.compile(schedules.build(name, num_ranks=4, num_microbatches=8), recv_depth=3)
    plan.save(tmp_path / "plan.json")
    loaded = pipert.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.native.fingerprint == plan.native.fingerprint
    assert loaded.recv_depth == 3
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "again.json"}


def test_a_name_may_have_any_characters(plan, tmp_path):
    content = plan.to_dict() | {"name": 'half "zéro" \\ \x01 \t 气泡 🫧'}
    renamed = pipert.Plan.from_dict(content)
    renamed.save(tmp_path / "plan.json")
    assert pipert.Plan.load(tmp_path / "plan.json").name == content["name"]


def test_whitespace_does_not_matter(plan, file):
    file.write_text(json.dumps(json.loads(file.read_text()), indent=2))
    assert pipert.Plan.load(file) == plan


def test_other_plans_have_other_fingerprints(plan):
    other = pipert.compile(schedules.build("zb-h1", num_ranks=3, num_microbatches=5))
    assert other != plan
    assert other.native.fingerprint != plan.native.fingerprint


def test_truncated(file):
    text = file.read_text()
    for length in (0, 1, len(text) // 3, len(text) // 2, len(text) - 2):
        file.write_text(text[:length])
        refused(file, r".*plan.json: not JSON: .* at line 1, column \d+")


def test_a_changed_byte(file):
    file.write_text(file.read_text().replace('"0F3"', '"0F2"'))
    refused(file, r".*plan.json: the plan was changed after it was written: expected sha256 '\w{64}', found '\w{64}'")


def test_every_changed_byte_is_noticed(plan, file):
    text = file.read_bytes()
    changed = 0
    for i in range(0, len(text), 13):
        data = bytearray(text)
        data[i] = ord("7") if data[i] != ord("7") else ord("8")
        file.write_bytes(data)
        with pytest.raises(pipert.PlanError):
            pipert.Plan.load(file)
        changed += 1
    assert changed > 100


@pytest.mark.parametrize("version", [0, 1, 3, "2", None, True, 2.5, [2]])
def test_another_version(file, version):
    content = json.loads(file.read_text())
    content["version"] = version
    file.write_text(json.dumps(content))
    refused(
        file, rf".*: expected plan file version 2, found {re.escape(repr(version))}(; make it anew with pipert plan)?"
    )


@pytest.mark.parametrize("text", ["[]", "3", '"pipert-plan"', "null", "{}", '{"format": "pipert"}', '{"version": 2}'])
def test_no_plan_file(tmp_path, text):
    (tmp_path / "f").write_text(text)
    refused(tmp_path / "f", '.*: not a plan file: expected an object with "format": "pipert-plan"')


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":2', '"version":2,"version":2', "duplicate key 'version'"),
        ('"plan":{', '"plan":{"name":"other",', "duplicate key 'name'"),
        ('"version":2', '"version":2,"note":""', "expected the keys .*, found format, note, plan, sha256, version"),
        ('"recv_depth":2', '"recv_depth":NaN', "not JSON: NaN"),
        ('"recv_depth":2', '"recv_depth":-Infinity', "not JSON: -Infinity"),
        ('"recv_depth":2', '"recv_depth":02', r"not JSON: .* at line 1, column \d+"),
        ('"recv_depth":2', '"recv_depth":' + 5000 * "9", r"not JSON: .*digits.*"),
        ('"recv_depth":2', '"recv_depth":' + 100_000 * "[", "nested too deeply"),
    ],
)
def test_json_that_is_not_strict(file, old, new, message):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    refused(file, ".*plan.json: " + message)


def test_not_text(tmp_path):
    (tmp_path / "f").write_bytes(b'{"format": "\xff"}')
    refused(tmp_path / "f", ".*: not UTF-8 at byte 12")


def test_a_plan_that_is_no_object(file):
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"plan": []}))
    refused(file, ".*: expected an object under plan")


def test_too_large(file, monkeypatch):
    monkeypatch.setattr(planfile, "MAX_BYTES", 100)
    refused(file, ".*: a plan file has at most 100 bytes, this has more")


def test_files_that_cannot_be_read_or_written(plan, tmp_path):
    refused(tmp_path / "missing", ".*missing: No such file or directory", pipert.ConfigError)
    refused(tmp_path, ".*: Is a directory", pipert.ConfigError)
    with pytest.raises(pipert.ConfigError, match=r"cannot write the plan to .*: No such file or directory"):
        plan.save(tmp_path / "missing" / "plan.json")


def edited(plan, path, value):
    """The plan file's content with one value changed and the right hash."""
    content = copy.deepcopy(json.loads(canonical_json(plan.to_dict())))
    *parents, last = path
    place = content
    for key in parents:
        place = place[key]
    place[last] = value(place[last]) if callable(value) else value
    return {"format": "pipert-plan", "version": 2, "sha256": planfile.plan_hash(content), "plan": content}


FAULTS = [
    (["ops", "deps", 0], 10_000, r"plan: ops.deps\[0\]: expected 0..\d+, found 10000"),
    (["ops", "deps", 0], -1, r"plan: ops.deps\[0\]: expected 0..\d+, found -1"),
    (["ops", "lane", 2], 99, r"plan: op 2 \(\w+\): lane: expected 0..\d+, found 99"),
    (["ops", "lane", 2], -1, r"plan: op 2 \(\w+\): lane: expected 0..\d+, found -1"),
    (["ops", "slot", 2], 99, r"plan: op 2 \(\w+\): slot: expected -1..\d+, found 99"),
    (["ops", "dep_offsets", 0], 1, r"plan: ops.dep_offsets\[0\]: expected 0..0, found 1"),
    (["ops", "dep_offsets", 3], 999, r"plan: op 2 \(\w+\): end in dep_offsets: expected \d+..\d+, found 999"),
    (["ops", "dep_offsets", 3], -1, r"plan: op 2 \(\w+\): end in dep_offsets: expected \d+..\d+, found -1"),
    (["ops", "deps"], lambda deps: [*deps, 0], r"plan: the last of ops.dep_offsets: expected (\d+)..\1, .*"),
    (["ops", "dep_offsets"], [0], r"plan: ops.dep_offsets: expected \d+ entries, found 1"),
    (
        ["ops", "slot"],
        lambda column: column[:-1],
        r"plan: the columns of ops differ in length: text has \d+, slot has .*",
    ),
    (["lanes", "peer"], [], r"plan: the columns of lanes differ in length: rank has \d+, peer has 0"),
    (["slots", "stage"], [], r"plan: the columns of slots differ in length: rank has \d+, stage has 0"),
    (["lanes", "rank", 0], 3, "plan: rank of lane 0: expected 0..2, found 3"),
    (["lanes", "peer", 0], 0, "plan: peer of lane 0: expected -1..-1, found 0"),
    (["lanes", "peer", 1], -1, "plan: peer of lane 1: expected 0..2, found -1"),
    (["lanes", "kind", 0], "gpu", r'plan: lanes.kind\[0\] \(byte \d+\): unknown lane kind "gpu"'),
    (["slots", "rank", 0], 3, "plan: rank of slot 0: expected 0..2, found 3"),
    (["slots", "stage", 0], 3, "plan: stage of slot 0: expected 0..2, found 3"),
    (["slots", "payload", 0], "x", r'plan: slots.payload\[0\] \(byte \d+\): unknown payload "x"'),
    (["paths", 0, 1], 7, "plan: rank of stage 1 on path 0: expected 0..2, found 7"),
    (["paths", 0, 1], -1, "plan: rank of stage 1 on path 0: expected 0..2, found -1"),
    (["paths"], [[0, 1, 2], [2, 1]], "plan: path 1: expected the 3 stages of path 0, found 2: replicas do not match"),
    (["paths"], [[0, 1, 2], [2, 1, 6]], "plan: rank of stage 2 on path 1: expected 0..5, found 6"),
    (["paths"], [[0, 1, 2], [2, 1, 4]], "plan: rank 3: expected at least one stage, found none"),
    (["paths"], [], r"plan: number of paths: expected 1..\d+, found 0"),
    (["paths"], [[]], r"plan: number of stages: expected 1..\d+, found 0"),
    (["paths", 0, 1], [1], r"plan: paths\[0\]\[1\] \(byte \d+\): expected an integer, found \[1\].*"),
    (["paths", 0], 1, r"plan: paths\[0\] \(byte \d+\): expected an array, found 1.*"),
    (["path_of"], [], r"plan: number of microbatches: expected 1..\d+, found 0"),
    (["path_of", 2], 1, "plan: path of microbatch 2: expected 0..0, found 1"),
    (["path_of", 2], -1, "plan: path of microbatch 2: expected 0..0, found -1"),
    (["path_of"], [0] * 100, r"plan: 3 stages x 100 microbatches: expected at least 300 ops, found \d+"),
    (["path_of"], [0] * 3, r"plan: op \d+ \(0F3\): microbatch: expected 0..2, found 3"),
    (["recv_depth"], 0, r"plan: recv_depth: expected 1..\d+, found 0"),
    (["recv_depth"], 2**31, r"plan: recv_depth \(byte \d+\): expected an integer within 32 bits, found 214.*"),
    (["recv_depth"], 10**400, r"plan: recv_depth \(byte \d+\): expected an integer within 32 bits, .*"),
    (["recv_depth"], 4.0, r"plan: recv_depth \(byte \d+\): expected an integer, found 4.0,.*"),
    (["recv_depth"], 1e300, r"plan: recv_depth \(byte \d+\): expected an integer, found 1e\+300,.*"),
    (["recv_depth"], True, r"plan: recv_depth \(byte \d+\): expected an integer, found true,.*"),
    (["recv_depth"], "4", r'plan: recv_depth \(byte \d+\): expected an integer, found "4",.*'),
    (["recv_depth"], None, r"plan: recv_depth \(byte \d+\): expected an integer, found null,.*"),
    (["name"], 3, r"plan: name \(byte \d+\): expected a string, found 3,.*"),
    (["name"], "\ud800", r"plan: name \(byte \d+\): half of a surrogate pair in a string"),
    (["lanes"], [], r"plan: lanes \(byte \d+\): expected an object, found \[\].*"),
    (["ops", "text"], {}, r"plan: ops.text \(byte \d+\): expected an array, found {}.*"),
    (["ops", "deps", 1], [[]], r"plan: ops.deps\[1\] \(byte \d+\): expected an integer, found \[\[\]\].*"),
    (["ops", "text", 1], "0F00", r'plan: ops.text\[1\] \(byte \d+\): not an op: "0F00"'),
    (["ops", "text", 1], "0F0junk", r'plan: ops.text\[1\] \(byte \d+\): not an op: "0F0junk"'),
    (["ops", "text", 1], "9F0", r"plan: op 1 \(9F0\): stage: expected 0..2, found 9"),
    (["ops", "text", 1], "0F99999999999", r'plan: ops.text\[1\] \(byte \d+\): not an op: "0F99999999999"'),
    (["extra"], 1, r'plan: \(byte \d+\): unknown key "extra"'),
    (["ops", "extra"], 1, r'plan: ops \(byte \d+\): unknown key "extra"'),
]


@pytest.mark.parametrize(("path", "value", "message"), FAULTS, ids=lambda x: str(x)[:40] if isinstance(x, list) else "")
def test_a_fault_in_the_plan_is_named(plan, tmp_path, path, value, message):
    if path[-1] == "extra":
        content = edited(plan, ["name"], "test")
        (content["plan"]["ops"] if len(path) == 2 else content["plan"])["extra"] = value
        content["sha256"] = planfile.plan_hash(content["plan"])
    else:
        content = edited(plan, path, value)
    (tmp_path / "plan.json").write_text(json.dumps(content))
    refused(tmp_path / "plan.json", ".*plan.json: " + message)


@pytest.mark.parametrize("key", ["name", "recv_depth", "paths", "path_of", "lanes", "slots", "ops"])
def test_a_missing_key_is_named(plan, key):
    content = plan.to_dict()
    del content[key]
    with pytest.raises(pipert.PlanError, match=rf'^plan: \(byte \d+\): missing key "{key}"$'):
        pipert.Plan.from_dict(content)


def test_the_core_alone_refuses_what_python_would_have_refused(plan):
    text = canonical_json(plan.to_dict())
    for broken, message in [
        (text + "x", "expected the end of the text, found x"),
        (text[:-1], r"expected ',' or '}', found the end of the text"),
        (text.replace('"name"', '"name":"a","name"', 1), 'duplicate key "name"'),
        (text.replace('"zb-h1"', '"\\q"', 1), "an unknown escape"),
        (text.replace('"zb-h1"', '"\\u12"', 1), "four hexadecimal digits"),
        (text.replace('"zb-h1"', '"\n"', 1), "a control character"),
        (text[:12], "a string without an end"),
        (text.replace('"recv_depth":2', '"recv_depth":-', 1), "expected an integer, found -"),
        (text.replace('"recv_depth":2', '"recv_depth":02', 1), "expected an integer, found 02"),
        ("", "expected an object, found the end of the text"),
    ]:
        with pytest.raises(pipert.PlanError, match=message):
            pipert._core.Plan(broken)


def fits(value, schema):
    """A JSON schema validator for what the plan schema uses; the first misfit, or None."""
    if "$ref" in schema:
        schema = {**SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], **schema}
    known = {
        "$ref",
        "$schema",
        "$defs",
        "title",
        "description",
        "type",
        "required",
        "additionalProperties",
        "properties",
    }
    known |= {"const", "enum", "pattern", "minimum", "maximum", "minItems", "items"}
    assert schema.keys() <= known
    types = {"object": dict, "array": list, "string": str, "integer": int}
    if "type" in schema and (not isinstance(value, types[schema["type"]]) or isinstance(value, bool)):
        return f"{value!r} is no {schema['type']}"
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return f"{value!r} is not allowed"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        return f"{value!r} does not match"
    if "minimum" in schema and not schema["minimum"] <= value <= schema.get("maximum", value):
        return f"{value!r} is out of range"
    if isinstance(value, dict):
        if not set(schema["required"]) <= value.keys() <= schema["properties"].keys():
            return f"keys {sorted(value)}"
        return next(filter(None, (fits(value[key], schema["properties"][key]) for key in value)), None)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return "too short"
        return next(filter(None, (fits(item, schema["items"]) for item in value)), None)
    return None


@pytest.mark.parametrize("name", schedules.names())
def test_the_schema_describes_plan_files(name, tmp_path):
    pipert.compile(schedules.build(name, num_ranks=2, num_microbatches=4)).save(tmp_path / "plan.json")
    assert fits(json.loads((tmp_path / "plan.json").read_text()), SCHEMA) is None


def test_the_schema_refuses(plan):
    for path, value in [(["ops", "text", 1], "0F0junk"), (["ops", "deps", 0], -1), (["name"], 3), (["recv_depth"], 0)]:
        assert fits(edited(plan, path, value), SCHEMA)


def test_the_schema_knows_every_op_kind():
    pattern = re.compile(SCHEMA["properties"]["plan"]["properties"]["ops"]["properties"]["text"]["items"]["pattern"])
    plain = [kind for kind in pipert.OpKind if kind is not pipert.OpKind.OVERLAP_F_B]
    for kind in plain:
        assert pattern.search(f"{12 if kind.has_place else ''}{kind.text}{3 if kind.has_microbatch else ''}")
    assert pattern.search("(12F3;4B5)OVERLAP_F_B")


def check(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pipert", "check", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_check_command(file):
    good = check(file)
    assert good.returncode == 0
    assert good.stdout.count("\n") == 1
    assert "zb-h1 is complete and cannot deadlock: 3 ranks, 3 stages, 4 microbatches" in good.stdout
    assert json.loads(check(file, "--json").stdout)["ok"] is True


def test_check_command_on_a_deadlock(plan, tmp_path):
    ops = plan.to_dict()["ops"]
    content = edited(plan, ["ops"], {**ops, "deps": [ops["deps"][0] + 4, *ops["deps"][1:]]})
    (tmp_path / "bad.json").write_text(json.dumps(content))
    bad = check(tmp_path / "bad.json")
    assert bad.returncode == 1
    assert bad.stdout == ""
    assert "Traceback" not in bad.stderr
    assert "0SEND_F0" in bad.stderr
    verdict = json.loads(check(tmp_path / "bad.json", "--json").stdout)
    assert verdict["ok"] is False
    assert verdict["error"] in bad.stderr
