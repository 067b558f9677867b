import CLinux
import Glibc

/// A range of mapped memory with one owner.
public final class MappedMemory: @unchecked Sendable {
    public let base: UnsafeMutableRawPointer
    public let length: Int

    private init(base: UnsafeMutableRawPointer, length: Int) {
        self.base = base
        self.length = length
    }

    deinit { munmap(base, length) }

    /// Fresh zeroed memory that costs nothing until it is touched.
    public static func anonymous(_ length: Int) throws(SystemError) -> MappedMemory {
        try map(length, flags: MAP_PRIVATE | MAP_ANONYMOUS | 0x4000 /* MAP_NORESERVE */, fd: -1, what: "anonymous memory")
    }

    /// The first `length` bytes of an open file, shared with everyone who maps it. Bytes past the file's end must not be touched.
    public static func shared(_ fd: Int32, length: Int, what: String) throws(SystemError) -> MappedMemory {
        try map(length, flags: MAP_SHARED | 0x4000, fd: fd, what: what)
    }

    private static func map(_ length: Int, flags: Int32, fd: Int32, what: String) throws(SystemError) -> MappedMemory {
        guard length > 0, let base = mmap(nil, length, PROT_READ | PROT_WRITE, flags, fd, 0), base != MAP_FAILED else {
            throw SystemError("mmap", "\(length) bytes of \(what)")
        }
        return MappedMemory(base: base, length: length)
    }
}

/// An anonymous file in memory that processes share by descriptor.
public func memoryFile(_ name: String, bytes: Int) throws(SystemError) -> Descriptor {
    let file = try Descriptor(checking: clinux_memfd(name), "memfd_create", name)
    guard ftruncate(file.raw, off_t(bytes)) == 0 else { throw SystemError("ftruncate", name) }
    return file
}
