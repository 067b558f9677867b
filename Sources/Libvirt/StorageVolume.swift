import CLibvirt

/// A volume of a storage pool (`virStorageVolPtr`). Methods block.
public final class StorageVolume: @unchecked Sendable {
    public let connection: Connection
    public let name: String
    /// Unique on the host; for a file its path.
    public let key: String
    let pointer: OpaquePointer

    /// Takes over the caller's reference to `pointer`.
    init(_ pointer: OpaquePointer, _ connection: Connection) {
        (self.pointer, self.connection) = (pointer, connection)
        name = borrowed(virStorageVolGetName(pointer)) ?? ""
        key = borrowed(virStorageVolGetKey(pointer)) ?? ""
    }

    deinit { virStorageVolFree(pointer) }

    /// `virStorageVolType`.
    public struct Kind: NamedNumber {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }
        public static let file = Kind(rawValue: 0)
        public static let block = Kind(rawValue: 1)
        public static let directory = Kind(rawValue: 2)
        public static let network = Kind(rawValue: 3)
        public static let networkDirectory = Kind(rawValue: 4)
        public static let ploop = Kind(rawValue: 5)
        public static let names: [Int32: String] = [
            0: "file", 1: "block", 2: "directory", 3: "network", 4: "network directory", 5: "ploop",
        ]
    }

    /// `virStorageVolInfo`, in bytes.
    public struct Info: Sendable, Hashable {
        public let kind: Kind
        /// As a guest sees it.
        public let capacity: UInt64
        /// What it takes on the host.
        public let allocation: UInt64
    }

    private func call<Result>(_ name: String, _ body: (OpaquePointer) -> Result?) throws(LibvirtError) -> Result {
        guard let result = body(pointer) else { throw .last(name) }
        return result
    }

    /// `virStorageVolGetInfo`.
    public func info() throws(LibvirtError) -> Info {
        try call("virStorageVolGetInfo") { pointer in
            var info = virStorageVolInfo()
            guard virStorageVolGetInfo(pointer, &info) == 0 else { return nil }
            return Info(kind: Kind(rawValue: info.type), capacity: info.capacity, allocation: info.allocation)
        }
    }

    /// Where it lies on its host (`virStorageVolGetPath`).
    public func path() throws(LibvirtError) -> String { try call("virStorageVolGetPath") { owned(virStorageVolGetPath($0)) } }

    /// `virStorageVolGetXMLDesc`.
    public func xml() throws(LibvirtError) -> String { try call("virStorageVolGetXMLDesc") { owned(virStorageVolGetXMLDesc($0, 0)) } }

    /// `virStoragePoolLookupByVolume`.
    public func pool() throws(LibvirtError) -> StoragePool {
        try call("virStoragePoolLookupByVolume") { virStoragePoolLookupByVolume($0).map { StoragePool($0, connection) } }
    }

    /// Deletes the volume and what is in it (`virStorageVolDelete`).
    public func delete() throws(LibvirtError) { _ = try call("virStorageVolDelete") { ok(virStorageVolDelete($0, 0)) } }

    /// Changes the capacity to so many bytes, or by so many with `.delta` (`virStorageVolResize`).
    public func resize(capacity: UInt64, flags: VolumeResizeFlags = []) throws(LibvirtError) {
        _ = try call("virStorageVolResize") { ok(virStorageVolResize($0, capacity, flags.rawValue)) }
    }
}

/// `virStorageVolCreateFlags`.
public struct VolumeCreateFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let preallocateMetadata = VolumeCreateFlags(rawValue: VIR_STORAGE_VOL_CREATE_PREALLOC_METADATA.rawValue)
}

/// `virStorageVolResizeFlags`.
public struct VolumeResizeFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Allocate the new space at once.
    public static let allocate = VolumeResizeFlags(rawValue: VIR_STORAGE_VOL_RESIZE_ALLOCATE.rawValue)
    /// The number is the difference.
    public static let delta = VolumeResizeFlags(rawValue: VIR_STORAGE_VOL_RESIZE_DELTA.rawValue)
    /// Needed to make it smaller.
    public static let shrink = VolumeResizeFlags(rawValue: VIR_STORAGE_VOL_RESIZE_SHRINK.rawValue)
}

extension Connection {
    /// The volume at that path on the daemon's host (`virStorageVolLookupByPath`).
    public func storageVolume(path: String) throws(LibvirtError) -> StorageVolume {
        try call("virStorageVolLookupByPath") { virStorageVolLookupByPath($0, path).map { StorageVolume($0, self) } }
    }

    /// `virStorageVolLookupByKey`.
    public func storageVolume(key: String) throws(LibvirtError) -> StorageVolume {
        try call("virStorageVolLookupByKey") { virStorageVolLookupByKey($0, key).map { StorageVolume($0, self) } }
    }
}
