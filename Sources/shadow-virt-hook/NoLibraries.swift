#if NOTHING_TO_LOAD
/// Swift's runtime asks for a library when an environment variable of its developers names one. In a program without shared libraries the C library's
/// `dlopen` would load what the machine has, of whatever release that is; the linker warns of it. This one has none to offer.
@_cdecl("dlopen") func noLibrary(_: UnsafePointer<CChar>?, _: Int32) -> UnsafeMutableRawPointer? { nil }
#endif
