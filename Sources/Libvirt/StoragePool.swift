import CLibvirt

/// A storage pool (`virStoragePoolPtr`). Methods block.
public final class StoragePool: @unchecked Sendable {
    public let connection: Connection
    public let name: String
    public let uuid: String
    let pointer: OpaquePointer

    /// Takes over the caller's reference to `pointer`.
    init(_ pointer: OpaquePointer, _ connection: Connection) {
        (self.pointer, self.connection) = (pointer, connection)
        name = borrowed(virStoragePoolGetName(pointer)) ?? ""
        uuid = uuidString { virStoragePoolGetUUIDString(pointer, $0) } ?? ""
    }

    deinit { virStoragePoolFree(pointer) }

    /// `virStoragePoolState`.
    public struct State: NamedNumber {
        public let rawValue: Int32
        public init(rawValue: Int32) { self.rawValue = rawValue }
        public static let inactive = State(rawValue: 0)
        public static let building = State(rawValue: 1)
        public static let running = State(rawValue: 2)
        public static let degraded = State(rawValue: 3)
        public static let inaccessible = State(rawValue: 4)
        public static let names: [Int32: String] = [0: "inactive", 1: "building", 2: "running", 3: "degraded", 4: "inaccessible"]
    }

    /// `virStoragePoolInfo`, in bytes.
    public struct Info: Sendable, Hashable {
        public let state: State
        public let capacity: UInt64
        public let allocation: UInt64
        public let available: UInt64
    }

    func call<Result>(_ name: String, _ body: (OpaquePointer) -> Result?) throws(LibvirtError) -> Result {
        guard let result = body(pointer) else { throw .last(name) }
        return result
    }

    /// State and space as of the last refresh (`virStoragePoolGetInfo`).
    public func info() throws(LibvirtError) -> Info {
        try call("virStoragePoolGetInfo") { pointer in
            var info = virStoragePoolInfo()
            guard virStoragePoolGetInfo(pointer, &info) == 0 else { return nil }
            return Info(state: State(rawValue: info.state), capacity: info.capacity, allocation: info.allocation, available: info.available)
        }
    }

    /// `virStoragePoolGetXMLDesc`.
    public func xml() throws(LibvirtError) -> String { try call("virStoragePoolGetXMLDesc") { owned(virStoragePoolGetXMLDesc($0, 0)) } }

    /// `virStoragePoolIsActive`.
    public func isActive() throws(LibvirtError) -> Bool { try call("virStoragePoolIsActive") { truth(virStoragePoolIsActive($0)) } }

    /// `virStoragePoolIsPersistent`.
    public func isPersistent() throws(LibvirtError) -> Bool {
        try call("virStoragePoolIsPersistent") { truth(virStoragePoolIsPersistent($0)) }
    }

    /// Starts a defined pool (`virStoragePoolCreate`).
    public func start() throws(LibvirtError) { _ = try call("virStoragePoolCreate") { ok(virStoragePoolCreate($0, 0)) } }

    /// Creates what the pool lies on, for example its directory (`virStoragePoolBuild`).
    public func build() throws(LibvirtError) { _ = try call("virStoragePoolBuild") { ok(virStoragePoolBuild($0, 0)) } }

    /// Looks for volumes that appeared or went (`virStoragePoolRefresh`).
    public func refresh() throws(LibvirtError) { _ = try call("virStoragePoolRefresh") { ok(virStoragePoolRefresh($0, 0)) } }

    /// Stops the pool; its volumes stay on disk (`virStoragePoolDestroy`).
    public func destroy() throws(LibvirtError) { _ = try call("virStoragePoolDestroy") { ok(virStoragePoolDestroy($0)) } }

    /// `virStoragePoolUndefine`.
    public func undefine() throws(LibvirtError) { _ = try call("virStoragePoolUndefine") { ok(virStoragePoolUndefine($0)) } }

    /// `virStoragePoolListAllVolumes`.
    public func volumes() throws(LibvirtError) -> [StorageVolume] {
        try call("virStoragePoolListAllVolumes") { pointer in
            var list: UnsafeMutablePointer<OpaquePointer?>?
            let count = virStoragePoolListAllVolumes(pointer, &list, 0)
            return ownedList(count: count, list) { StorageVolume($0, connection) }
        }
    }

    /// `virStorageVolLookupByName`; `noStorageVolume` when there is none.
    public func volume(name: String) throws(LibvirtError) -> StorageVolume {
        try call("virStorageVolLookupByName") { virStorageVolLookupByName($0, name).map { StorageVolume($0, connection) } }
    }

    /// `virStorageVolCreateXML`; `storageVolumeExists` when the name is taken.
    public func createVolume(xml: String, flags: VolumeCreateFlags = []) throws(LibvirtError) -> StorageVolume {
        try call("virStorageVolCreateXML") { virStorageVolCreateXML($0, xml, flags.rawValue).map { StorageVolume($0, connection) } }
    }
}

/// `virConnectListAllStoragePoolsFlags`.
public struct StoragePoolFilter: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let inactive = StoragePoolFilter(rawValue: VIR_CONNECT_LIST_STORAGE_POOLS_INACTIVE.rawValue)
    public static let active = StoragePoolFilter(rawValue: VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE.rawValue)
}

extension Connection {
    /// `virConnectListAllStoragePools`.
    public func storagePools(_ filter: StoragePoolFilter = []) throws(LibvirtError) -> [StoragePool] {
        try call("virConnectListAllStoragePools") { pointer in
            var list: UnsafeMutablePointer<OpaquePointer?>?
            let count = virConnectListAllStoragePools(pointer, &list, filter.rawValue)
            return ownedList(count: count, list) { StoragePool($0, self) }
        }
    }

    /// `virStoragePoolLookupByName`; `noStoragePool` when there is none.
    public func storagePool(name: String) throws(LibvirtError) -> StoragePool {
        try call("virStoragePoolLookupByName") { virStoragePoolLookupByName($0, name).map { StoragePool($0, self) } }
    }

    /// `virStoragePoolLookupByUUIDString`.
    public func storagePool(uuid: String) throws(LibvirtError) -> StoragePool {
        try call("virStoragePoolLookupByUUIDString") { virStoragePoolLookupByUUIDString($0, uuid).map { StoragePool($0, self) } }
    }

    /// The pool whose target is that directory or device (`virStoragePoolLookupByTargetPath`).
    public func storagePool(targetPath: String) throws(LibvirtError) -> StoragePool {
        try call("virStoragePoolLookupByTargetPath") { virStoragePoolLookupByTargetPath($0, targetPath).map { StoragePool($0, self) } }
    }

    /// Stores a pool's definition (`virStoragePoolDefineXML`).
    public func defineStoragePool(xml: String) throws(LibvirtError) -> StoragePool {
        try call("virStoragePoolDefineXML") { virStoragePoolDefineXML($0, xml, 0).map { StoragePool($0, self) } }
    }

    /// Starts a pool from XML without storing it (`virStoragePoolCreateXML`).
    public func createStoragePool(xml: String) throws(LibvirtError) -> StoragePool {
        try call("virStoragePoolCreateXML") { virStoragePoolCreateXML($0, xml, 0).map { StoragePool($0, self) } }
    }
}
