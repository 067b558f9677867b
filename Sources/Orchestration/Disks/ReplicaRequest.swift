/// A disk that the shadow's host is to hold a replica of.
public struct ReplicaRequest: Codable, Sendable, Hashable {
    /// As the domain's XML calls it: `vda`. Unique within the domain.
    public var target: String
    /// As the guest sees it.
    public var capacityBytes: UInt64
    /// What it takes on the primary's host now; a sparse replica begins with about that.
    public var allocationBytes: UInt64
    /// The pool it lies in on the primary's host; nil when in none.
    public var pool: String?
    /// The replica's name, unless the shadow's host knows one already.
    public var volume: String
    /// Its path on the primary's host: without a pool's name the shadow's host looks for a pool of the same folder.
    public var sourcePath: String

    public init(target: String, capacityBytes: UInt64, allocationBytes: UInt64, pool: String?, volume: String, sourcePath: String) {
        self.target = target
        self.capacityBytes = capacityBytes
        self.allocationBytes = allocationBytes
        self.pool = pool
        self.volume = volume
        self.sourcePath = sourcePath
    }
}

/// A file or device that is not copied: the shadow's host must have it at the same path.
public struct MediaRequest: Codable, Sendable, Hashable {
    public enum Kind: String, Codable, Sendable {
        /// A CD-ROM's or floppy's medium: without it the shadow's drive is empty.
        case removable
        /// A read-only disk, which cannot be empty.
        case readOnlyDisk
        /// A writable disk on storage that both hosts share.
        case shared
    }
    public var target: String
    public var path: String
    public var kind: Kind

    public init(target: String, path: String, kind: Kind) {
        self.target = target
        self.path = path
        self.kind = kind
    }
}
