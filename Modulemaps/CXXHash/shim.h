/* XXH3 from the shared library: pages and frames are hashed with it (128 and 64 bits, seeded). */
#include <xxhash.h>
