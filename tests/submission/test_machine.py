"""What a machine says of itself: on machines made of files, as /proc and /sys have them, and on this one."""

import os
from pathlib import Path

import pytest

from mlperf_fast.submission import machine
from mlperf_fast.submission.description import FIELDS

GPUS = "NVIDIA A100-SXM4-80GB, 81920 MiB, 1410 MHz, 4, 16, 510.47.03\n"


def write(root, **files):
    """Files by their path, `__` for a slash."""
    for name, content in files.items():
        put(root, name.replace("__", "/"), content)


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A node with two processors of 8 cores, two NVMe disks as one volume, InfiniBand, and no GPU so far."""
    root = tmp_path / "node"
    write(
        root,
        proc__cpuinfo="processor : 0\nmodel name\t: AMD EPYC 72F3 8-Core Processor\ncpu MHz\t\t: 1497.3",
        proc__meminfo="MemTotal:       2113539748 kB\nMemFree: 12 kB",
        etc__os_release="",
    )
    put(root, "etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 20.04.4 LTS"')
    for cpu in range(32):  # the second thread of a core comes 16 later
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        put(topology, "physical_package_id", cpu % 16 // 8)
        put(topology, "core_id", cpu % 8)
    (root / "sys/devices/system/cpu/cpuidle").mkdir()
    first = root / "sys/devices/system/cpu/cpu0"
    put(first, "cpufreq/cpuinfo_max_freq", 3400000)
    caches = [(1, "Data", "32K", "0,16"), (1, "Instruction", "32K", "0,16"), (2, "Unified", "512K", "0,16"),
              (3, "Unified", "16384K", "0-3,16-19")]  # fmt: skip
    for index, (level, kind, size, shared) in enumerate(caches):
        for name, value in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            put(first, f"cache/index{index}/{name}", value)
    mounts = ["22 1 8:2 / / rw - ext4 /dev/sda2 rw", f"30 22 253:0 / {tmp_path} rw - xfs /dev/dm-0 rw"]
    put(root, "proc/self/mountinfo", "\n".join(mounts))
    for disk in ("nvme0n1", "nvme1n1"):
        put(root, f"sys/devices/pci/{disk}/queue/rotational", 0)
        put(root, f"sys/devices/pci/{disk}/device/model", "SAMSUNG MZ1LB1T9  ")
        put(root, f"sys/devices/pci/{disk}/{disk}p1/partition", 1)
        slaves = root / "sys/devices/virtual/dm-0/slaves"
        slaves.mkdir(parents=True, exist_ok=True)
        (slaves / f"{disk}p1").symlink_to(root / f"sys/devices/pci/{disk}/{disk}p1")
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/253:0").symlink_to(root / "sys/devices/virtual/dm-0")
    for port in range(8):
        put(root, f"sys/class/infiniband/mlx5_{port}/ports/1/link_layer", "InfiniBand")
        put(root, f"sys/class/infiniband/mlx5_{port}/ports/1/rate", "200 Gb/sec (4X HDR)")
    for name, speed, is_real in (("eth0", 100000, True), ("eth1", -1, True), ("docker0", 10000, False)):
        put(root, f"sys/class/net/{name}/speed", speed)
        put(root, f"sys/class/net/{name}/type", 1)
        if is_real:
            (root / f"sys/class/net/{name}/device").mkdir()
    monkeypatch.setenv("PATH", "/nowhere")
    return root


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """nvidia_smi(output, code): puts a program of that name on PATH."""

    def install(output, code=0):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/output").write_text(output)
        tool = tmp_path / "bin/nvidia-smi"
        # Its columns are those that are asked for, or it fails.
        asked = "name,memory.total,clocks.max.sm,pcie.link.gen.max,pcie.link.width.max,driver_version"
        tool.write_text(
            f'#!/bin/sh\ntest "$*" = "--query-gpu={asked} --format=csv,noheader" || exit 9\n'
            f'while read -r line; do echo "$line"; done < {tmp_path}/bin/output\nexit {code}\n'
        )
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    return install


def test_a_server_says_what_it_has(root, tmp_path, nvidia_smi):
    nvidia_smi(GPUS * 8)
    capacity = os.statvfs(tmp_path)
    found = machine.facts(tmp_path / "data/not/there/yet", root)
    assert found.keys() - {"other_software_stack"} <= FIELDS.keys()
    size = capacity.f_frsize * capacity.f_blocks / 1e9
    assert float(found.pop("host_storage_capacity").split()[0].replace(",", "")) == pytest.approx(
        size if size < 1000 else size / 1e3, abs=0.5
    )
    assert found == {
        "host_processors_per_node": "2",
        "host_processor_model_name": "AMD EPYC 72F3 8-Core Processor",
        "host_processor_core_count": "8",
        "host_processor_vcpu_count": "16",
        "host_processor_frequency": "up to 3.40 GHz",
        "host_processor_caches": "L1d 32 KiB for 2 threads, L1i 32 KiB for 2 threads, L2 512 KiB for 2 threads, "
        "L3 16 MiB for 8 threads",
        "host_memory_capacity": "2,016 GiB",
        "host_storage_type": "2x NVMe SSD (SAMSUNG MZ1LB1T9)",
        "host_networking": "8x InfiniBand 200 Gb/sec (4X HDR), 1x Ethernet 100 Gb/s",
        "accelerators_per_node": "8",
        "accelerator_model_name": "NVIDIA A100-SXM4-80GB",
        "accelerator_memory_capacity": "80 GiB",
        "accelerator_frequency": "up to 1410 MHz",
        "accelerator_host_interconnect": "PCIe gen 4 x16",
        "operating_system": "Ubuntu 20.04.4 LTS",
        "other_software_stack": {"kernel": os.uname().release, "nvidia_driver": "510.47.03"},
    }


def accelerators(root, tmp_path):
    found = machine.facts(tmp_path, root)
    return {field: value for field, value in found.items() if field.startswith("accelerator")}


def test_without_accelerators_it_says_none(root, tmp_path):
    assert accelerators(root, tmp_path) == machine.NO_ACCELERATOR


@pytest.mark.parametrize("device", ["dev/nvidia0", "dev/kfd", "sys/class/accel/accel0/dev", "dev/davinci7"])
def test_accelerators_that_nobody_lists_are_unknown_not_absent(root, tmp_path, device):
    put(root, device, "")
    assert accelerators(root, tmp_path) == {}


@pytest.mark.parametrize(("output", "code"), [(GPUS, 1), ("Failed to initialize NVML: Driver mismatch", 0), ("", 0)])
def test_an_nvidia_smi_that_fails_is_no_answer(root, tmp_path, nvidia_smi, output, code):
    put(root, "dev/nvidia0", "")
    nvidia_smi(output, code)
    assert accelerators(root, tmp_path) == {}


def test_gpus_that_differ_and_values_that_arent_there(root, tmp_path, nvidia_smi):
    nvidia_smi("A, 81920 MiB, [N/A], [N/A], 16, 1\nB, 40960 MiB, [N/A], [N/A], 16, 1\n")
    assert accelerators(root, tmp_path) == {
        "accelerators_per_node": "2",
        "accelerator_model_name": "A; B",
        "accelerator_memory_capacity": "81920 MiB; 40960 MiB",
    }


@pytest.mark.parametrize(
    ("mount", "disk", "said"),
    [
        ("0:99 / {} rw - nfs4 server:/data rw", None, "network file system (nfs4)"),
        ("0:99 / {} rw - lustre 10.0.0.1@o2ib:/fs rw", None, "network file system (lustre)"),
        ("0:99 / {} rw - tmpfs none rw", None, "memory (tmpfs)"),
        ("0:99 / {} rw - overlay overlay rw", None, None),
        ("8:1 / {} rw - ext4 /dev/sdb rw", ("sdb", 1, "ST16000NM001G"), "hard disk (ST16000NM001G)"),
        ("8:1 / {} rw - ext4 /dev/sdb rw", ("sdb", 0, None), "SSD"),
        ("8:1 / {} rw - ext4 /dev/sdb rw", ("sdb", 1, "PersistentDisk"), "virtual disk (PersistentDisk)"),
        ("0:41 / {} rw - btrfs /dev/sdb rw", ("sdb", 0, None), "SSD"),
        ("254:0 / {} rw - ext4 /dev/vda rw", ("vda", 1, None), "virtual disk (vda)"),
        ("8:1 / {} rw - ext4 /dev/mystery rw", ("mystery", 0, None), None),
    ],
)
def test_kinds_of_storage(root, tmp_path, mount, disk, said):
    lines = (root / "proc/self/mountinfo").read_text() + f"31 22 {mount.format(tmp_path)}"
    put(root, "proc/self/mountinfo", lines)
    if disk:
        name, rotates, model = disk
        place = root / f"sys/devices/{name}"
        put(place, "queue/rotational", rotates)
        if model:
            put(place, "device/model", model)
        link = root / "sys" / ("class/block/sdb" if "btrfs" in mount else f"dev/block/{mount.split()[0]}")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(place)
    assert machine.facts(tmp_path, root).get("host_storage_type") == said


def test_a_machine_that_tells_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = machine.facts(tmp_path, tmp_path / "nothing")
    assert found.keys() == {"host_storage_capacity", "other_software_stack", *machine.NO_ACCELERATOR}


def test_this_machine(tmp_path):
    found = machine.facts(tmp_path)
    usable = len(os.sched_getaffinity(0))
    if "host_processor_vcpu_count" in found:
        assert int(found["host_processors_per_node"]) * int(found["host_processor_vcpu_count"]) >= usable
        assert int(found["host_processor_core_count"]) <= int(found["host_processor_vcpu_count"])
    gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    assert float(found["host_memory_capacity"].split()[0].replace(",", "")) == pytest.approx(gib, rel=0.05)
    assert found == machine.facts(Path(tmp_path)), "the same each time: runs on one machine must agree"
