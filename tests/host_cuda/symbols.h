// The symbols of the running program: its kernels by name, and their shared memory.
#pragma once

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace cuda_on_host {

// A function or variable of this program, from its symbol table. Internal linkage is included.
struct Symbol {
  std::string name;  // mangled
  int type;          // STT_FUNC, STT_OBJECT, ...
  char* begin;
  size_t bytes;
};

inline std::vector<Symbol> read_symbols() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> program{std::istreambuf_iterator<char>(file), {}};
  char* base = nullptr;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        *static_cast<char**>(to) = reinterpret_cast<char*>(info->dlpi_addr);
        return 1;  // stop: the first entry is the program
      },
      &base);
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(program.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(program.data() + header->e_shoff);
  std::vector<Symbol> found;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) {
      continue;
    }
    const char* names = program.data() + sections[sections[i].sh_link].sh_offset;
    const auto* symbols =
        reinterpret_cast<const Elf64_Sym*>(program.data() + sections[i].sh_offset);
    for (size_t j = 0; j < sections[i].sh_size / sizeof(Elf64_Sym); ++j) {
      const Elf64_Sym& symbol = symbols[j];
      found.push_back(
          {names + symbol.st_name, ELF64_ST_TYPE(symbol.st_info), base + symbol.st_value,
           symbol.st_size});
    }
  }
  return found;
}

inline const std::vector<Symbol>& symbols() {
  static const std::vector<Symbol> all = read_symbols();
  return all;
}

// The local static variables of functions named ..._kernel.
inline std::vector<Symbol> find_shared_memory() {
  std::vector<Symbol> found;
  std::copy_if(
      symbols().begin(), symbols().end(), std::back_inserter(found), [](const Symbol& symbol) {
        return symbol.type == STT_OBJECT && symbol.name.starts_with("_ZZ") &&
               symbol.name.find("_kernel") != symbol.name.npos;
      });
  return found;
}

// The functions named ..._kernel, by address. Names are demangled and have template arguments, as
// in nvcc's tools.
inline std::map<const void*, std::string> find_kernels() {
  std::map<const void*, std::string> found;
  for (const Symbol& symbol : symbols()) {
    const bool is_clone = symbol.name.find('.') != symbol.name.npos;
    if (symbol.type != STT_FUNC || is_clone || !symbol.name.starts_with("_ZN")) {
      continue;
    }
    int status = 0;
    const std::unique_ptr<char, decltype(&std::free)> demangled(
        abi::__cxa_demangle(symbol.name.c_str(), nullptr, nullptr, &status), &std::free);
    std::string name(status == 0 ? demangled.get() : "");
    name.resize(std::min(name.find('('), name.size()));
    if (name.starts_with("void ") && name.find("_kernel<") != name.npos) {
      found.emplace(symbol.begin, name.substr(std::strlen("void ")));
    }
  }
  return found;
}

}  // namespace cuda_on_host
