"""The build script: the CPU extension `_C`, one shared object per instruction set, the CUDA extension `_cuda` where
there is nvcc, and the place of `kernels/`.

`_C` links no libtorch: it takes raw pointers, so one build serves every torch release and the build environment
needs setuptools and pybind11 only. Each source file is compiled once per instruction set into a module of its own
(`mlperf_fast._C.generic`, `.avx2`, `.avx512`), and `mlperf_fast/_C/__init__.py` loads the best one the processor
runs. Separate modules, rather than several objects in one: inline functions of the C++ library that were compiled
for AVX-512 can then never be the ones that an older processor ends up calling. `_cuda` is one module with machine code
for each GPU generation; it holds its own copy of CUDA's runtime library, so that any driver that is new enough will do.

Objects stay in build/objects, so that the next build of the same folder compiles only what is out of date.
"""

import copy
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from glob import glob

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

X86_LEVELS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mbmi2"],
    "avx512": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        "-mbmi2",
        "-mprefer-vector-width=512",
    ],
}
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
# MLPERF_FAST_LEVELS=generic,avx2 builds only these, for whoever builds often; generic is always there.
WANTED = {"generic", *os.environ.get("MLPERF_FAST_LEVELS", ",".join(X86_LEVELS)).split(",")}
if WANTED - X86_LEVELS.keys():
    raise SystemExit(
        f"MLPERF_FAST_LEVELS: {', '.join(sorted(WANTED - X86_LEVELS.keys()))} isn't of {', '.join(X86_LEVELS)}"
    )
LEVELS = {level: flags for level, flags in X86_LEVELS.items() if level in WANTED} if IS_X86 else {"generic": []}

# No -ffast-math: NaN and infinity must survive. Reductions are vectorised where the source says `omp simd`.
CXX_FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]
# Behind ours, so that they rule; setuptools puts them in front.
CXX_FLAGS += shlex.split(os.environ.get("CXXFLAGS", ""))

CUDA_MODULE = "mlperf_fast._cuda.native"
CUDA_ARCHITECTURES = (80, 90, 100)  # A100, H100, B200
NVCC_FLAGS = ["-std=c++17", "-O3", "-lineinfo", "-Icsrc"]

# What decides over an object beside the sources, in the name of its folder. build/temp of setuptools won't do: in an
# editable install it is a folder that lasts as long as the build.
_SETTINGS = [os.environ.get(name, "") for name in ("CC", "CXX", "CPPFLAGS", "CFLAGS", "CXXFLAGS", "NVCC_APPEND_FLAGS")]
_SETTINGS += [sysconfig.get_platform(), sys.version, pybind11.__version__]
OBJECTS = os.path.join("build", "objects", f"{zlib.crc32(repr(_SETTINGS).encode()):08x}")
HEADERS = ["setup.py", *sorted(glob("csrc/*.*h") + glob("csrc/common/*.*h") + glob("csrc/go/*.h"))]


def is_old(target, source):
    """Whether an object must be compiled: after a change of its source or of any header."""
    return not os.path.exists(target) or os.path.getmtime(target) <= max(map(os.path.getmtime, (source, *HEADERS)))


def cpu_extensions():
    sources = sorted(source for source in glob("csrc/*.cpp") + glob("csrc/go/*.cpp") if "bindings_cuda" not in source)
    return [
        Pybind11Extension(
            f"mlperf_fast._C.{level}",
            sources,
            depends=HEADERS,
            include_dirs=["csrc"],
            define_macros=[("MODULE_NAME", level)],
            extra_compile_args=CXX_FLAGS + flags,
            extra_link_args=["-fopenmp"],
            cxx_std=17,
        )
        for level, flags in LEVELS.items()
    ]


def find_nvcc():
    """The compiler in CUDA_HOME or CUDA_PATH, on PATH, or where the toolkit installs itself; None without one."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    found = [shutil.which(place) for place in (*places[:-1], "nvcc", places[-1])]
    return next((nvcc for nvcc in found if nvcc), None)


def cuda_architectures(nvcc):
    """Those of CUDA_ARCHITECTURES that this nvcc knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    return [number for number in CUDA_ARCHITECTURES if f"compute_{number}" in listed]


def cuda_extension():
    """The extension `_cuda` (None: not to be built) and the line that says why. MLPERF_FAST_CUDA=auto|1|0 rules."""
    wanted = os.environ.get("MLPERF_FAST_CUDA", "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"MLPERF_FAST_CUDA is {wanted!r}; expected auto, 1 or 0")
    if wanted == "0":
        return None, "not built (MLPERF_FAST_CUDA=0)"
    nvcc = find_nvcc()
    missing = None
    if nvcc is None:
        missing = "there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"
    elif not cuda_architectures(nvcc):
        missing = f"{nvcc} knows none of sm_{', sm_'.join(map(str, CUDA_ARCHITECTURES))}"
    if missing and wanted == "1":
        raise SystemExit(f"MLPERF_FAST_CUDA=1, but {missing}")
    if missing:
        return None, f"not built ({missing})"
    extension = Extension(CUDA_MODULE, ["csrc/bindings_cuda.cpp", *sorted(glob("csrc/*.cu"))])
    built_for = ", ".join(f"sm_{number}" for number in cuda_architectures(nvcc))
    return extension, f"built by {nvcc} for {built_for} and PTX of the last"


def build_cuda(extension, module, folder):
    """Compiles each source with one call of nvcc (which hands .cpp to g++), those that are out of date, in parallel."""
    nvcc = find_nvcc()
    numbers = cuda_architectures(nvcc)
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    targets.append(f"-gencode=arch=compute_{numbers[-1]},code=compute_{numbers[-1]}")
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]

    def compiled(source):
        target = os.path.join(folder, os.path.basename(source) + ".o")
        if is_old(target, source):
            flags = targets if source.endswith(".cu") else includes
            subprocess.run([nvcc, *NVCC_FLAGS, *flags, "-Xcompiler=-fPIC", "-c", source, "-o", target], check=True)
        return target

    os.makedirs(folder, exist_ok=True)
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, extension.sources))
        os.makedirs(os.path.dirname(module), exist_ok=True)
        subprocess.run([nvcc, "-shared", "-cudart=static", *objects, "-o", module], check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"_cuda: {error}\nMLPERF_FAST_CUDA=0 builds without it") from None


class BuildAndReport(build_ext):
    """Compiles the instruction sets side by side and says at the end what was built."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        if ext.name == CUDA_MODULE:
            folder = os.path.realpath(find_nvcc()).replace(os.sep, "-").strip("-")  # another nvcc, another folder
            build_cuda(ext, self.get_ext_fullpath(ext.name), os.path.join(OBJECTS, folder))
            return
        # The same sources, compiled side by side with different flags: each needs a folder for its objects.
        own = copy.copy(self)
        own.build_temp = os.path.join(OBJECTS, ext.name.rpartition(".")[2])
        build_ext.build_extension(own, ext)

    def run(self):
        super().run()
        print(f"mlperf_fast: _C: built for {', '.join(LEVELS)} with OpenMP")
        print(f"mlperf_fast: _cuda: {CUDA_VERDICT}")


packages = find_packages(include=["mlperf_fast", "mlperf_fast.*"])
# kernels/ is installed as mlperf_fast.kernels and never as `kernels`, which is another project's name; benchmarks/, a
# name that other projects install by mistake, likewise.
packages += [f"mlperf_fast.{name}" for name in find_packages(include=["kernels", "kernels.*", "benchmarks"])]
if __name__ == "__main__":
    CUDA_EXTENSION, CUDA_VERDICT = cuda_extension()
    with ParallelCompile(default=max(1, os.cpu_count() // len(LEVELS)), needs_recompile=is_old):
        setup(
            packages=packages,
            package_dir={"mlperf_fast.kernels": "kernels", "mlperf_fast.benchmarks": "benchmarks"},
            ext_modules=cpu_extensions() + ([CUDA_EXTENSION] if CUDA_EXTENSION else []),
            cmdclass={"build_ext": BuildAndReport},
        )
