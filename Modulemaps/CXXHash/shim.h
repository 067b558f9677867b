/* XXH3 from the shared library: pages and frames are hashed with it (128 and 64 bits, seeded).
 *
 * Distributions build the library for the oldest processor they support, SSE2 on x86. Where it was built with DISPATCH=1 (Debian,
 * Ubuntu), which installs this header, it also has variants that choose AVX2 or AVX-512 at run time: a page takes a third of the
 * time. The hashes are the same. The header works through macros, which Swift does not see, hence functions. */
#include <xxhash.h>
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#endif

static inline XXH64_hash_t cxxhash_64(const void *bytes, size_t length, const void *secret, size_t secret_size)
{
    return XXH3_64bits_withSecret(bytes, length, secret, secret_size);
}

static inline XXH128_hash_t cxxhash_128(const void *bytes, size_t length, const void *secret, size_t secret_size)
{
    return XXH3_128bits_withSecret(bytes, length, secret, secret_size);
}
