/// A range of a disk and what becomes of it.
public struct DiskExtent: Sendable, Hashable {
    public enum Kind: UInt8, Sendable {
        /// Bytes are written.
        case data = 1
        /// The range reads as zeros afterwards.
        case zero = 2
        /// The guest no longer needs the range; it reads as zeros afterwards unless the replica is a block device that cannot do that.
        case trim = 3
    }

    /// NBD's customary limit of a request is 32 MiB. A ceiling to check lengths against before memory is taken for them.
    public static let mostDataBytes = 64 << 20

    /// `ReplicaSet.Disk.index`.
    public var disk: Int
    public var kind: Kind
    /// In bytes, of any alignment.
    public var offset: UInt64
    public var length: Int

    public init(disk: Int, kind: Kind, offset: UInt64, length: Int) {
        self.disk = disk
        self.kind = kind
        self.offset = offset
        self.length = length
    }

    /// Bytes that come with it.
    var dataBytes: Int { kind == .data ? length : 0 }
}

extension DiskExtent: CustomStringConvertible {
    public var description: String { "\(kind) of \(length) bytes at \(offset) of disk \(disk)" }
}
