import platform

import torch

from distsparse.export import describe, machine


def test_describes_this_process():
    described = describe()
    assert list(described) == [
        "hostname",
        "cpu",
        "num_cpus",
        "accelerator",
        "python_version",
        "torch_version",
    ]
    assert described["hostname"]
    assert described["cpu"]
    assert described["num_cpus"] >= 1
    assert described["python_version"] == platform.python_version()
    assert described["torch_version"] == torch.__version__
    assert bool(described["accelerator"]) == torch.cuda.is_available()
    # Rows of a table: no subclass of str that a writer would not know.
    assert {type(value) for value in described.values()} == {str, int}


def test_cpu_name_comes_from_cpuinfo(tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Fast CPU @ 3 GHz \nprocessor\t: 1\n")
    monkeypatch.setattr(machine, "_CPUINFO", cpuinfo)
    assert describe()["cpu"] == "Fast CPU @ 3 GHz"
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert describe()["cpu"] == "arm"


def test_counts_the_cpus_of_the_affinity(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    assert describe()["num_cpus"] == 3
