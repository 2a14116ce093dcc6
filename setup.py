"""The build script: the CPU extension `_C`, one shared object per instruction set, and the place of `kernels/`.

`_C` links no libtorch: it takes raw pointers, so one build serves every torch release and the build environment
needs setuptools and pybind11 only. Each source file is compiled once per instruction set into a module of its own
(`mlperf_fast._C.generic`, `.avx2`, `.avx512`), and `mlperf_fast/_C/__init__.py` loads the best one the processor
runs. Separate modules, rather than several objects in one: inline functions of the C++ library that were compiled
for AVX-512 can then never be the ones that an older processor ends up calling.
"""

import copy
import os
import platform
from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup
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
LEVELS = X86_LEVELS if IS_X86 else {"generic": []}

# No -ffast-math: NaN and infinity must survive. Reductions are vectorised where the source says `omp simd`.
CXX_FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"]


def cpu_extensions():
    sources = sorted(source for source in glob("csrc/*.cpp") if "bindings_cuda" not in source)
    headers = sorted(glob("csrc/*.h") + glob("csrc/common/*.h"))
    return [
        Pybind11Extension(
            f"mlperf_fast._C.{level}",
            sources,
            depends=headers,
            include_dirs=["csrc"],
            define_macros=[("MODULE_NAME", level)],
            extra_compile_args=CXX_FLAGS + flags,
            extra_link_args=["-fopenmp"],
            cxx_std=17,
        )
        for level, flags in LEVELS.items()
    ]


def cuda_verdict():
    """What MLPERF_FAST_CUDA=auto|1|0 asks for, and why `_cuda` is or isn't built."""
    wanted = os.environ.get("MLPERF_FAST_CUDA", "auto")
    if wanted not in ("auto", "1", "0"):
        raise SystemExit(f"MLPERF_FAST_CUDA is {wanted!r}; expected auto, 1 or 0")
    if wanted == "0":
        return "_cuda: not built (MLPERF_FAST_CUDA=0)"
    if not glob("csrc/*.cu"):
        if wanted == "1":
            raise SystemExit(
                "MLPERF_FAST_CUDA=1, but this version has no CUDA C++ sources (its GPU kernels are Triton's)"
            )
        return "_cuda: not built (this version has no CUDA C++ sources; its GPU kernels are Triton's)"
    raise SystemExit("csrc/ holds .cu files, but setup.py has no rule for them")


class BuildAndReport(build_ext):
    """Compiles the instruction sets side by side and says at the end what was built."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        # The same sources, compiled side by side with different flags: each needs a folder for its objects.
        own = copy.copy(self)
        own.build_temp = os.path.join(self.build_temp, ext.name.rpartition(".")[2])
        build_ext.build_extension(own, ext)

    def run(self):
        verdict = cuda_verdict()
        super().run()
        print(f"mlperf_fast: _C: built for {', '.join(LEVELS)} with OpenMP")
        print(f"mlperf_fast: {verdict}")


packages = find_packages(include=["mlperf_fast", "mlperf_fast.*"])
# kernels/ is installed as mlperf_fast.kernels and never as `kernels`, which is another project's name; benchmarks/, a
# name that other projects install by mistake, likewise.
packages += [f"mlperf_fast.{name}" for name in find_packages(include=["kernels", "kernels.*", "benchmarks"])]
setup(
    packages=packages,
    package_dir={"mlperf_fast.kernels": "kernels", "mlperf_fast.benchmarks": "benchmarks"},
    ext_modules=cpu_extensions(),
    cmdclass={"build_ext": BuildAndReport},
)
