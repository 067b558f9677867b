import CLinux
import Glibc
import Platform

/// One replica volume, a raw file or a block device, open and locked for us alone. Usable from several threads as a file is.
public final class ReplicaImage: @unchecked Sendable {
    /// What tells a file's content from an older one: nobody writes to a file without changing its modification time.
    struct Identity: Equatable {
        var device: UInt64
        var inode: UInt64
        var byteCount: UInt64
        var modifiedSeconds: Int64
        var modifiedNanoseconds: Int64
    }

    public let path: String
    public let byteCount: UInt64
    public let isBlockDevice: Bool
    private let file: Descriptor
    /// What the file system or device turned out not to be able to do, so that it is not asked again.
    private var canPunch = true
    private var canZeroRange = true
    private var canReserve: Bool

    /// Below this much free space a file's blocks are taken before an epoch is journalled. Free space that others use up between
    /// that look and the write is what the margin is for.
    private static let scarceBytes: UInt64 = 256 << 20
    private static let zeroes = [UInt8](repeating: 0, count: 1 << 20)

    /// Opens, takes QEMU's locks, and compares the size.
    public init(path: String, byteCount: UInt64) throws {
        let file = try Descriptor(checking: open(path, O_RDWR | O_CLOEXEC), "open", path)
        var info = stat()
        guard fstat(file.raw, &info) == 0 else { throw SystemError("fstat", path) }
        let type = info.st_mode & S_IFMT
        guard type == S_IFREG || type == S_IFBLK else { throw ReplicaError.notAnImage(path: path) }
        try ImageLock.take(file.raw, path: path)
        let end = lseek(file.raw, 0, SEEK_END)
        guard end >= 0 else { throw SystemError("lseek", path) }
        guard UInt64(end) == byteCount else { throw ReplicaError.wrongSize(path: path, bytes: UInt64(end), expected: byteCount) }
        self.path = path
        self.byteCount = byteCount
        self.file = file
        isBlockDevice = type == S_IFBLK
        canReserve = type == S_IFREG
    }

    /// Lets QEMU start a guest on it.
    func unlock() { _ = clinux_unlock_open_file(file.raw) }

    func check(_ extent: DiskExtent) throws {
        guard extent.length >= 0, extent.offset <= byteCount, UInt64(extent.length) <= byteCount - extent.offset else {
            throw ReplicaError.outOfBounds(extent, capacity: byteCount)
        }
        guard extent.dataBytes <= DiskExtent.mostDataBytes else { throw ReplicaError.tooLong(extent) }
    }

    private func check(_ kind: DiskExtent.Kind, _ offset: UInt64, _ length: Int) throws {
        try check(DiskExtent(disk: 0, kind: kind, offset: offset, length: length))
    }

    // MARK: Reading and writing

    public func read(_ bytes: UnsafeMutableRawPointer, _ count: Int, at offset: UInt64) throws {
        try check(.data, offset, count)
        try FileAccess.read(file.raw, bytes, count, at: offset, path: path)
    }

    public func write(_ bytes: UnsafeRawPointer, _ count: Int, at offset: UInt64) throws {
        try check(.data, offset, count)
        try FileAccess.write(file.raw, bytes, count, at: offset, path: path)
    }

    /// Makes the range read as zeros, without taking space for them where that is possible.
    public func zero(_ length: Int, at offset: UInt64) throws {
        try check(.zero, offset, length)
        guard length > 0 else { return }
        if try punch(length, at: offset) { return }
        if canZeroRange {
            if retryingInterrupts({ clinux_zero_range(file.raw, off_t(offset), off_t(length)) }) == 0 { return }
            if !Self.isUnsupported(errno) { throw writeFailure("fallocate", path, needed: length) }
            if errno != EINVAL { canZeroRange = false }
        }
        var done = 0
        while done < length {
            let count = min(Self.zeroes.count, length - done)
            try Self.zeroes.withUnsafeBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                try FileAccess.write(file.raw, base, count, at: offset + UInt64(done), path: path)
            }
            done += count
        }
    }

    /// Gives the range's space back. False: this replica cannot, and keeps what it has.
    public func trim(_ length: Int, at offset: UInt64) throws -> Bool {
        try check(.trim, offset, length)
        guard length > 0 else { return true }
        if try punch(length, at: offset) { return true }
        guard !isBlockDevice else { return false }
        try zero(length, at: offset)
        return true
    }

    /// On a block device the kernel zeroes the range through the device, or says that it cannot.
    private func punch(_ length: Int, at offset: UInt64) throws -> Bool {
        guard canPunch else { return false }
        if retryingInterrupts({ clinux_punch_hole(file.raw, off_t(offset), off_t(length)) }) == 0 { return true }
        guard Self.isUnsupported(errno) else { throw writeFailure("fallocate", path, needed: length) }
        // EINVAL: a device wants whole sectors. The next range may have them.
        if errno != EINVAL { canPunch = false }
        return false
    }

    private static func isUnsupported(_ code: Int32) -> Bool {
        code == EOPNOTSUPP || code == ENOSYS || code == EINVAL || code == ENODEV
    }

    // MARK: Space and durability

    /// True when so little is free that writing `bytes` more might fail for lack of space.
    func isScarce(_ bytes: Int) -> Bool {
        guard canReserve else { return false }
        var info = statvfs()
        guard fstatvfs(file.raw, &info) == 0 else { return true }
        return UInt64(info.f_bavail) * UInt64(info.f_frsize) < UInt64(bytes) * 2 + Self.scarceBytes
    }

    /// Takes the space that a write of the range will need; its content stays.
    func reserve(_ length: Int, at offset: UInt64) throws {
        guard canReserve, length > 0 else { return }
        if retryingInterrupts({ clinux_allocate(file.raw, off_t(offset), off_t(length), 1) }) == 0 { return }
        guard Self.isUnsupported(errno) else { throw writeFailure("fallocate", path, needed: length) }
        canReserve = false
    }

    public func sync() throws {
        guard fdatasync(file.raw) == 0 else { throw writeFailure("fdatasync", path, needed: 0) }
    }

    /// Starts writing out what is dirty, so that a later `sync` has less to wait for. Only a hint.
    func startWriteback() {
        _ = clinux_start_writeback(file.raw)
    }

    /// Nil for a block device: it has no modification time that could be relied on.
    func identity() throws -> Identity? {
        guard !isBlockDevice else { return nil }
        var info = stat()
        guard fstat(file.raw, &info) == 0 else { throw SystemError("fstat", path) }
        return Identity(device: UInt64(info.st_dev), inode: UInt64(info.st_ino), byteCount: UInt64(info.st_size),
                        modifiedSeconds: Int64(info.st_mtim.tv_sec), modifiedNanoseconds: Int64(info.st_mtim.tv_nsec))
    }

    /// The end of the hole that `offset` lies in; nil when data is there, or may be.
    func holeEnd(at offset: UInt64) -> UInt64? {
        let data = clinux_seek_data(file.raw, off_t(offset))
        if data < 0 { return errno == ENXIO ? byteCount : nil }
        return UInt64(data) > offset ? UInt64(data) : nil
    }
}
