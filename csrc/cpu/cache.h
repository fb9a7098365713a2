// The limit of what memory.cpp keeps, for module.cpp.
#pragma once

#include <cstddef>

namespace semimatch {

size_t cache_limit();
// Frees what is above.
void set_cache_limit(size_t bytes);

}  // namespace semimatch
