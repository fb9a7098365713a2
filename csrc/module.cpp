// The Python module semimatch_kernels._C: importing it registers the CPU kernels with PyTorch (cpu/*.cpp); its
// functions say what it was built from. The ops themselves are defined in Python, in semimatch_kernels/schemas.py.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "cpu/cache.h"
#include "cpu/dispatch.h"
#include "op_schemas.h"  // made by setup.py from semimatch_kernels/schemas.py

namespace py = pybind11;

namespace {

py::dict op_schemas() {
  py::dict ops;
  std::istringstream lines(SEMIMATCH_OP_SCHEMAS);
  for (std::string line; std::getline(lines, line);) {
    const size_t name = line.find('(');
    ops[py::str(line.substr(0, name))] = line.substr(name);
  }
  return ops;
}

py::dict build_info() {
  py::dict info;
#ifdef __clang__
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "gcc " __VERSION__;
#endif
  info["flags"] = SEMIMATCH_FLAGS;
  info["torch"] = SEMIMATCH_TORCH;
  info["torch_target"] = SEMIMATCH_TORCH_TARGET;
#ifdef SEMIMATCH_CPU_X86
  info["cpu_sets"] = "baseline avx2 avx512";
#else
  info["cpu_sets"] = "baseline";
#endif
  info["cpu_set"] = semimatch::name_of(semimatch::cpu_set());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "C++ kernels of semimatch_kernels; importing this registers them with PyTorch.";
  module.def("op_schemas", &op_schemas, "Name -> schema of each op, as this binary was built for.");
  module.def("cache_limit", &semimatch::cache_limit, "Bytes of freed results that are kept at most.");
  module.def("set_cache_limit", &semimatch::set_cache_limit, "Sets it, and frees what is above.");
  module.def("build_info", &build_info,
             "compiler, flags, torch: version built against, torch_target: oldest version it runs with, "
             "cpu_sets: instruction sets compiled, cpu_set: the one this machine uses.");
}
