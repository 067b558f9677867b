import CLinux
import Glibc
import Platform

/// A raw file or block device as an export.
public final class FileExport: NBDExport {
    public let name: String
    public let description: String
    public let byteCount: UInt64
    public let isReadOnly: Bool
    /// All connections share the page cache.
    public let allowsSeveralConnections = true
    public let canRead = true
    public let zeroesFast: Bool

    private static let punchHole: Int32 = 0x02, keepSize: Int32 = 0x01, zeroRange: Int32 = 0x10
    private static let seekData: Int32 = 3, seekHole: Int32 = 4

    private let file: Descriptor
    private let path: String
    private let maximumPayload: Int
    /// A buffer for each connection; costs nothing until it is used.
    private let buffers: MappedMemory?
    /// For zeros that have to be written.
    private let zeros: MappedMemory
    private static let zerosBytes = 64 << 10

    /// `maximumPayload` is that of the server.
    /// - Throws: `SystemError`; EINVAL for what is neither a file nor a block device.
    public init(path: String, name: String, description: String = "", isReadOnly: Bool = false,
                maximumPayload: Int = 1 << 20) throws(SystemError) {
        let flags = (isReadOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC
        file = try Descriptor(checking: open(path, flags), "open", path)
        var status = stat()
        guard fstat(file.raw, &status) == 0 else { throw SystemError("fstat", path) }
        let kind = status.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK else { throw SystemError("open", path, code: EINVAL) }
        // A block device has no size of its own in its inode.
        let end = kind == S_IFREG ? status.st_size : lseek(file.raw, 0, Int32(SEEK_END))
        guard end >= 0 else { throw SystemError("lseek", path) }
        byteCount = UInt64(end)
        self.path = path
        self.name = name
        self.description = description
        self.isReadOnly = isReadOnly
        self.maximumPayload = maximumPayload
        buffers = isReadOnly ? nil : try MappedMemory.anonymous(maximumPayload * NBDServer.maximumConnections)
        zeros = try MappedMemory.anonymous(FileExport.zerosBytes)
        // Tried behind the end, where there is nothing to lose. Of a block device one cannot know.
        let mode = FileExport.punchHole | FileExport.keepSize
        zeroesFast = !isReadOnly && kind == S_IFREG && clinux_fallocate(file.raw, mode, end, 4096) == 0
    }

    // MARK: Writing

    public func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer {
        guard let buffers, length <= maximumPayload else { throw NBDError(EINVAL, "No buffer for \(length) bytes to \(path)") }
        return buffers.base + connection.slot * maximumPayload
    }

    public func takesWriteAtOnce(length: Int, connection: NBDConnectionID) -> Bool { true }

    public func abandonWrite(connection: NBDConnectionID) {}

    public func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError) {
        guard let base = bytes.baseAddress else { return }
        var done = 0
        while done < bytes.count {
            let n = retryingInterrupts { pwrite(file.raw, base + done, bytes.count - done, off_t(offset) + done) }
            guard n > 0 else { throw failure("pwrite") }
            done += n
        }
        if forceUnitAccess { try flush() }
    }

    public func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError) {
        let mode = mayTrim ? FileExport.punchHole | FileExport.keepSize : FileExport.zeroRange
        if try !allocate(mode, offset, length) {
            var done: UInt64 = 0
            while done < length {
                let some = min(UInt64(FileExport.zerosBytes), length - done)
                let n = retryingInterrupts { pwrite(file.raw, zeros.base, Int(some), off_t(offset + done)) }
                guard n > 0 else { throw failure("pwrite") }
                done += UInt64(n)
            }
        }
        if forceUnitAccess { try flush() }
    }

    public func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError) {
        _ = try allocate(FileExport.punchHole | FileExport.keepSize, offset, length)
        if forceUnitAccess { try flush() }
    }

    public func flush() throws(NBDError) {
        // A read-only client has written nothing, and its descriptor may not be allowed to.
        guard !isReadOnly else { return }
        guard fdatasync(file.raw) == 0 else { throw failure("fdatasync") }
    }

    /// False when the file system or device cannot do it; block devices answer EINVAL for what is not whole sectors.
    private func allocate(_ mode: Int32, _ offset: UInt64, _ length: UInt64) throws(NBDError) -> Bool {
        while true {
            if clinux_fallocate(file.raw, mode, off_t(offset), off_t(length)) == 0 { return true }
            switch errno {
            case EINTR: continue
            case EOPNOTSUPP, ENOSYS, EINVAL, ENODEV: return false
            default: throw failure("fallocate")
            }
        }
    }

    private func failure(_ call: String) -> NBDError { NBDError(SystemError(call, path)) }

    // MARK: Reading

    public func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(NBDError) {
        guard let base = buffer.baseAddress else { return }
        var done = 0
        while done < buffer.count {
            let n = retryingInterrupts { pread(file.raw, base + done, buffer.count - done, off_t(offset) + done) }
            guard n >= 0 else { throw failure("pread") }
            guard n > 0 else { throw NBDError(EIO, "\(path) has become shorter than \(offset + UInt64(buffer.count)) bytes") }
            done += n
        }
    }

    public func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError) {
        let end = offset + length
        var position = offset
        while position < end {
            let data = lseek(file.raw, off_t(position), FileExport.seekData)
            // ENXIO: no more data in the file. Anything else: it cannot be told, so it is data.
            if data < 0 { return extent(end - position, errno == ENXIO ? [.hole, .zero] : []) }
            if data > position {
                extent(UInt64(data) - position, [.hole, .zero])
                if firstOnly { return }
                position = UInt64(data)
                continue
            }
            let hole = lseek(file.raw, off_t(position), FileExport.seekHole)
            guard hole > position else { return extent(end - position, []) }
            extent(UInt64(hole) - position, [])
            if firstOnly { return }
            position = UInt64(hole)
        }
    }
}
