"""Reading the exports of nsys. `nsys_export` makes them, and says how it knows what they look like."""

import sqlite3

import nsys_export
import pytest
from nsys_export import EPOCH, FORMS, NEW, OLD, Export, thread

from pipert import ConfigError
from pipert.profile.nsys_report import Span, read_report

COMPUTES = {"0F0": True, "0B0": True, "1F0": True, "0SEND_F0": False, "1RECV_F0": False}
MAIN, AUTOGRAD, SENDER = thread(100, 1), thread(100, 2), thread(100, 3)
OTHER = thread(200, 1)


def device(start, end):
    return Span(EPOCH + start, EPOCH + end, on_device=True)


def host(start, end):
    return Span(EPOCH + start, EPOCH + end, on_device=False)


def one_process(form):
    export = Export(form)
    export.domain("NCCL", 2, MAIN)
    export.domain("pipert", 1, MAIN)
    export.mark("0F0", 50, MAIN, domain=1)
    export.range("pipert step 7", 100, 1000, MAIN, domain=0)
    export.range("0F0", 110, 200, MAIN)
    export.range("0SEND_F0", 180, 190, MAIN)  # within the forward, whose last work follows it
    export.range("0B0", 300, 600, MAIN)
    export.range("1RECV_F0", 320, 400, SENDER)  # begun after the backward, but not what autograd works for
    export.range("ncclAllReduce", 310, 320, MAIN, domain=2)
    export.range("1F0", 700, 710, MAIN)
    export.launch(MAIN, 120, 500, 700)
    export.launch(MAIN, 130, 700, 720, table="MEMSET")
    export.launch(MAIN, 185, 720, 780, table="MEMCPY")
    export.launch(MAIN, 195, 730, 740)
    export.launch(AUTOGRAD, 350, 800, 900)
    export.launch(AUTOGRAD, 500, 900, 950)
    export.launch(SENDER, 390, 400, 460, table="MEMCPY")
    export.launch(MAIN, 650, 960, 970)  # between two ops
    export.range("pipert step 8", 1100, 1300, MAIN, domain=0)
    export.range("0F0", 1110, 1200, MAIN)
    export.launch(MAIN, 1120, 1400, 1500)
    export.range("0F0", 1310, 1320, MAIN)  # after the step: an evaluation
    return export


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_op_takes_the_time_of_what_it_put_on_the_device(form, tmp_path):
    assert read_report(one_process(form).write(tmp_path / "one.sqlite"), COMPUTES) == {
        7: {
            "0F0": device(500, 740),
            "0SEND_F0": device(720, 780),
            "1RECV_F0": device(400, 460),
            "0B0": device(800, 950),  # called by a thread without a range
            "1F0": host(700, 710),
        },
        8: {"0F0": device(1400, 1500)},
    }


@pytest.mark.parametrize("form", [FORMS["between"], NEW], ids=["between", "new"])
def test_processes_have_correlations_and_domains_of_their_own(form, tmp_path):
    export = Export(form)
    for each, domain, shift in ((MAIN, 1, 0), (OTHER, 4, 50)):
        export.domain("pipert", domain, each)
        export.domain("mine", 5 - domain, each)
        export.range("pipert step 2", 100 + shift, 900 + shift, each, domain=0)
    export.range("0F0", 110, 200, MAIN, domain=1)
    export.range("1F0", 210, 220, MAIN, domain=4)  # of the domain "mine"
    export.range("1F0", 160, 300, OTHER, domain=4)
    export.range("0F0", 310, 320, OTHER, domain=1)
    export.launch(MAIN, 120, 300, 400, correlation=9)
    export.launch(OTHER, 170, 600, 700, correlation=9)
    found = read_report(export.write(tmp_path / "two.sqlite"), COMPUTES)
    assert found == {2: {"0F0": device(300, 400), "1F0": device(600, 700)}}


def test_without_a_domain_event_the_texts_tell(tmp_path):
    export = one_process(NEW)
    export.nvtx = [event for event in export.nvtx if event[2] != nsys_export.DOMAIN_CREATE]
    assert read_report(export.write(tmp_path / "a.sqlite"), COMPUTES)[7]["0F0"] == device(500, 740)


def test_without_work_on_the_device_there_is_host_time(tmp_path):
    export = Export()
    export.range("pipert step 0", 0, 100, MAIN)
    export.range("0F0", 10, 20, MAIN)
    assert read_report(export.write(tmp_path / "a.sqlite"), COMPUTES) == {0: {"0F0": host(10, 20)}}


@pytest.mark.parametrize(
    ("without", "text"),
    [
        ("NVTX_EVENTS", "there is no table NVTX_EVENTS"),
        ("StringIds", "there is no table StringIds"),
        ("CUPTI_ACTIVITY_KIND_RUNTIME", "there is no table CUPTI_ACTIVITY_KIND_RUNTIME"),
        ("TARGET_INFO_SESSION_START_TIME", "there is no table TARGET_INFO_SESSION_START_TIME"),
        ("NVTX_EVENTS.globalTid", "table NVTX_EVENTS has no column globalTid; it has category, color, domainId"),
        ("NVTX_EVENTS.textId", "table NVTX_EVENTS has neither a column text nor textId"),
        ("CUPTI_ACTIVITY_KIND_KERNEL.correlationId", "table CUPTI_ACTIVITY_KIND_KERNEL has no column correlationId"),
    ],
)
def test_what_is_missing_is_named_with_the_version(without, text, tmp_path):
    export = one_process(NEW)
    export.without = {without}
    with pytest.raises(ConfigError) as error:
        read_report(export.write(tmp_path / "lacking.sqlite"), COMPUTES)
    assert str(error.value).startswith(f"lacking.sqlite, exported by nsys 2025.1.1 (schema 3.1): {text}")


def test_an_unknown_version_is_called_that(tmp_path):
    export = one_process(NEW)
    export.without = {"META_DATA_EXPORT", "StringIds"}
    with pytest.raises(ConfigError, match="exported by nsys of an unknown version: there is no table StringIds"):
        read_report(export.write(tmp_path / "a.sqlite"), COMPUTES)


def test_processes_that_cannot_be_told_apart_are_refused(tmp_path):
    export = one_process(OLD)
    export.range("pipert step 7", 100, 200, OTHER)
    export.range("0F0", 110, 120, OTHER)
    with pytest.raises(ConfigError, match="has no column globalPid, so work of several processes"):
        read_report(export.write(tmp_path / "a.sqlite"), COMPUTES)


@pytest.mark.parametrize(("text", "fault"), [("pipert step 7", "no range of an op"), ("0F0", "no range of a step")])
def test_a_report_of_something_else_is_refused(text, fault, tmp_path):
    export = Export()
    export.range(text, 0, 100, MAIN)
    with pytest.raises(ConfigError, match=fault):
        read_report(export.write(tmp_path / "a.sqlite"), COMPUTES)


def test_files_that_are_no_export(tmp_path):
    (tmp_path / "text.sqlite").write_text("no database at all, but a text of some length\n" * 20)
    with pytest.raises(ConfigError, match=r"text\.sqlite cannot be read as an nsys export: file is not a database"):
        read_report(tmp_path / "text.sqlite", COMPUTES)
    with pytest.raises(ConfigError, match=r"none\.sqlite cannot be read as an nsys export"):
        read_report(tmp_path / "none.sqlite", COMPUTES)
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(ConfigError, match="there is no table TARGET_INFO_SESSION_START_TIME"):
        read_report(tmp_path / "empty.sqlite", COMPUTES)
