"""What a machine can say of itself for a system description: processors, memory, storage, network, accelerators.

All of it is read from /proc, /sys and nvidia-smi, and needs no rights. What these don't say isn't in the answer:
nothing is looked up in tables of products, and nothing is guessed. Counts are of one processor or of one node.
"""

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NO_ACCELERATOR = {"accelerators_per_node": "0"} | dict.fromkeys(
    ("accelerator_model_name", "accelerator_memory_configuration", "accelerator_memory_capacity"), "none"
)
_NETWORK = re.compile(r"nfs|lustre|gpfs|beegfs|ceph|glusterfs|cifs|smb|9p|wekafs|panfs|afs", re.IGNORECASE)
_VIRTUAL = re.compile(r"virtual|qemu|vbox|vmware|persistentdisk|xen|msft", re.IGNORECASE)
# Devices of accelerators whose tools aren't asked: where there is one, accelerators are unknown, not absent.
_OTHER_ACCELERATORS = ("dev/kfd", "dev/dxg", "dev/accel*", "dev/nvidia[0-9]*", "dev/davinci*", "sys/class/accel/*")


def facts(storage: Path, root: Path = Path("/")) -> dict[str, Any]:
    """{field of a system description: answer} for this machine, without the fields that it can't tell.

    storage: a folder on the storage that the data lies on; it, or what of it exists. root: where /proc, /sys, /dev and
    /etc are.
    """
    found: dict[str, Any] = {
        **_processors(root),
        **_memory(root),
        **_storage(storage, root),
        **_network(root),
        **_accelerators(root),
    }
    driver = found.pop("driver", None)
    found["operating_system"] = _operating_system(root)
    stack = {"kernel": platform.release(), "nvidia_driver": driver}
    found["other_software_stack"] = {name: version for name, version in stack.items() if version}
    return {field: value for field, value in found.items() if value}


# --- processors and memory ------------------------------------------------------------------------------------------


def _processors(root: Path) -> dict[str, str | None]:
    """Threads and cores are of one processor. None where the processors differ, or the system doesn't tell."""
    cpus = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*"))
    places = [(_read(cpu / "topology/physical_package_id"), _read(cpu / "topology/core_id")) for cpu in cpus]
    places = [place for place in places if place[0] is not None]  # a processor that is switched off has none
    threads = Counter(package for package, _ in places)
    cores = Counter(package for package, _ in set(places))
    model = _line_of(root / "proc/cpuinfo", "model name")
    return {
        "host_processors_per_node": str(len(threads)) if threads else None,
        "host_processor_model_name": model,
        "host_processor_core_count": _one(cores.values()),
        "host_processor_vcpu_count": _one(threads.values()),
        "host_processor_frequency": _frequency(cpus, model),
        "host_processor_caches": _caches(cpus[0]) if cpus else None,
    }


def _one(counts: Iterable[int]) -> str | None:
    different = set(counts)
    return str(different.pop()) if len(different) == 1 else None


def _frequency(cpus: list[Path], model: str | None) -> str | None:
    """The highest there is, else the one in the model's name; the clock of the moment isn't a property."""
    kilohertz = _read(cpus[0] / "cpufreq/cpuinfo_max_freq") if cpus else None
    if kilohertz and kilohertz.isdecimal():
        return f"up to {int(kilohertz) / 1e6:.2f} GHz"
    named = re.search(r"@ *([0-9.]+) *GHz", model or "")
    return f"{named[1]} GHz" if named else None


def _caches(cpu: Path) -> str | None:
    parts = []
    for index in sorted((cpu / "cache").glob("index[0-9]*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        sharing = len(_cpu_list(_read(index / "shared_cpu_list") or ""))
        if level and kind and size:
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            shared = f" for {sharing} threads" if sharing > 1 else ""
            parts.append(f"L{level}{letter} {_kib(size)}{shared}")
    return ", ".join(parts) or None


def _kib(size: str) -> str:
    """`2048K` as 2 MiB."""
    match = re.fullmatch(r"(\d+)K", size)
    if not match:
        return size
    kib = int(match[1])
    return f"{kib / 1024:g} MiB" if kib >= 1024 else f"{kib} KiB"


def _cpu_list(text: str) -> list[int]:
    """`0-3,8` as numbers."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _memory(root: Path) -> dict[str, str | None]:
    """What the kernel has: somewhat less than what is built in."""
    match = re.fullmatch(r"(\d+) kB", _line_of(root / "proc/meminfo", "MemTotal") or "")
    gib = int(match[1]) / 2**20 if match else 0
    return {"host_memory_capacity": (f"{gib:,.0f} GiB" if gib >= 100 else f"{gib:.1f} GiB") if gib else None}


# --- storage --------------------------------------------------------------------------------------------------------


def _storage(folder: Path, root: Path) -> dict[str, str | None]:
    """The kind of the device under the folder's file system, and the file system's size."""
    folder = Path(os.path.realpath(folder.expanduser()))
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        capacity = os.statvfs(folder)
    except OSError:  # a network file system that doesn't answer
        return {}
    gigabytes = capacity.f_frsize * capacity.f_blocks / 1e9
    size = f"{gigabytes / 1e3:,.1f} TB" if gigabytes >= 1000 else f"{gigabytes:,.0f} GB"
    return {"host_storage_type": _storage_type(folder, root), "host_storage_capacity": size if gigabytes else None}


def _storage_type(folder: Path, root: Path) -> str | None:
    best: tuple[int, str, str, str] | None = None
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        words, _, kind = line.partition(" - ")
        number, point = words.split()[2], re.sub(r"\\040", " ", words.split()[4])
        inside = point == "/" or folder == Path(point) or Path(point) in folder.parents
        if inside and (best is None or len(point) >= best[0]):  # of two mounts at one point the later hides the first
            best = len(point), number, kind.split()[0], kind.split()[1]
    if best is None:
        return None
    _, number, kind, source = best
    if _NETWORK.search(kind):
        return f"network file system ({kind})"
    if kind in ("tmpfs", "ramfs"):
        return f"memory ({kind})"
    device = root / "sys/dev/block" / number
    if not device.exists() and source.startswith("/dev/"):  # btrfs and its like number their own
        device = root / "sys/class/block" / os.path.basename(source)
    kinds = Counter(filter(None, (_disk(disk, root) for disk in _disks(device))))
    return ", ".join(f"{count}x {kind}" if count > 1 else kind for kind, count in kinds.items()) or None


def _disks(device: Path) -> list[Path]:
    """The disks below a partition, a logical volume or a RAID."""
    device = Path(os.path.realpath(device))
    below = sorted((device / "slaves").glob("*"))
    if below:
        return [disk for part in below for disk in _disks(part)]
    return [device.parent if (device / "partition").exists() else device]


def _disk(disk: Path, root: Path) -> str | None:
    """`NVMe SSD (model)`, or what the driver's name and the kernel say."""
    rotates, model = _read(disk / "queue/rotational"), _read(disk / "device/model")
    named = f" ({model})" if model else ""
    if disk.name.startswith("nvme"):
        return f"NVMe SSD{named}"
    if disk.name.startswith(("vd", "xvd")) or (model and _VIRTUAL.search(model)):
        return f"virtual disk{named or f' ({disk.name})'}"  # what lies under it, the machine can't see
    if disk.name.startswith("sd") and rotates in ("0", "1"):
        return f"{'SSD' if rotates == '0' else 'hard disk'}{named}"
    return None


# --- network and accelerators ---------------------------------------------------------------------------------------


def _network(root: Path) -> dict[str, str | None]:
    """The adapters that are plugged in, with their speed."""
    found: Counter[str] = Counter()
    for port in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        layer, rate = _read(port / "link_layer"), _read(port / "rate")
        if layer == "InfiniBand" and rate:
            found[f"InfiniBand {rate}"] += 1
    for interface in sorted((root / "sys/class/net").glob("*")):
        speed = _read(interface / "speed") or ""
        if (
            (interface / "device").exists()
            and speed.isdecimal()
            and int(speed) > 0
            and _read(interface / "type") == "1"
        ):
            found[f"Ethernet {int(speed) / 1000:g} Gb/s"] += 1
    return {"host_networking": ", ".join(f"{count}x {name}" for name, count in found.items()) or None}


def _accelerators(root: Path) -> dict[str, str | None]:
    """NVIDIA's GPUs, by nvidia-smi. No answer where there are others, or GPUs that nvidia-smi doesn't list."""
    gpus = _nvidia_smi("name", "memory.total", "clocks.max.sm", "pcie.link.gen.max", "pcie.link.width.max",
                       "driver_version")  # fmt: skip
    if not gpus:
        others = any(next(root.glob(pattern), None) for pattern in _OTHER_ACCELERATORS)
        return {} if others else dict(NO_ACCELERATOR)
    models, memory, clock, generation, width, driver = (
        "; ".join(dict.fromkeys(value for value in column if value and not value.startswith("[")))
        for column in zip(*gpus, strict=True)
    )
    mebibytes = re.fullmatch(r"(\d+) MiB", memory)
    return {
        "accelerators_per_node": str(len(gpus)),
        "accelerator_model_name": models,
        "accelerator_memory_capacity": f"{int(mebibytes[1]) / 1024:.0f} GiB" if mebibytes else memory,
        "accelerator_frequency": f"up to {clock}" if clock else None,
        "accelerator_host_interconnect": f"PCIe gen {generation} x{width}" if generation and width else None,
        "driver": driver,
    }


def _nvidia_smi(*queries: str) -> list[list[str]]:
    """A row for each GPU; none without the tool, or where it fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(queries)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.stdout.strip().splitlines()]
    return [row for row in rows if len(row) == len(queries)]


# --- the rest -------------------------------------------------------------------------------------------------------


def _operating_system(root: Path) -> str | None:
    for line in (_read(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip("\"'")
    return None


def _line_of(path: Path, key: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip() or None
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
