/* LZ4's block format from the shared library: single pages of a guest's memory on their way between hosts. */
#include <lz4.h>
