import CLibvirt

/// A guest (`virDomainPtr`): the handle, not the guest itself, which may be gone by the next call (`LibvirtError.isNoDomain`).
///
/// Methods block until the daemon has answered; keep them off Swift's cooperative thread pool.
public final class Domain: @unchecked Sendable {
    public let connection: Connection
    public let name: String
    /// Lower-case, with hyphens.
    public let uuid: String
    let pointer: OpaquePointer

    /// Takes over the caller's reference to `pointer`.
    init(_ pointer: OpaquePointer, _ connection: Connection) {
        (self.pointer, self.connection) = (pointer, connection)
        name = borrowed(virDomainGetName(pointer)) ?? ""
        uuid = uuidString { virDomainGetUUIDString(pointer, $0) } ?? ""
    }

    deinit { virDomainFree(pointer) }

    /// Runs a C call with the pointer; nil means that it failed.
    func call<Result>(_ name: String, _ body: (OpaquePointer) -> Result?) throws(LibvirtError) -> Result {
        guard let result = body(pointer) else { throw .last(name) }
        return result
    }

    /// The number of the running guest, when it was running at lookup (or was started by this object): libvirt asks nobody
    /// (`virDomainGetID`).
    public var id: Int32? {
        // -1 as an unsigned number: not running, or failed.
        Int32(exactly: virDomainGetID(pointer))
    }

    /// The state and, by `RunningReason`, `PausedReason`, `ShutoffReason` and so on, its reason (`virDomainGetState`).
    public func state() throws(LibvirtError) -> (state: DomainState, reason: Int32) {
        try call("virDomainGetState") { pointer in
            var (state, reason): (Int32, Int32) = (0, 0)
            guard virDomainGetState(pointer, &state, &reason, 0) == 0 else { return nil }
            return (DomainState(rawValue: state), reason)
        }
    }

    /// The definition (`virDomainGetXMLDesc`).
    public func xml(flags: XMLFlags = []) throws(LibvirtError) -> String {
        try call("virDomainGetXMLDesc") { owned(virDomainGetXMLDesc($0, flags.rawValue)) }
    }

    /// `virDomainIsActive`.
    public func isActive() throws(LibvirtError) -> Bool {
        try call("virDomainIsActive") { truth(virDomainIsActive($0)) }
    }

    /// Whether a definition stays when the guest stops (`virDomainIsPersistent`).
    public func isPersistent() throws(LibvirtError) -> Bool {
        try call("virDomainIsPersistent") { truth(virDomainIsPersistent($0)) }
    }

    /// Whether the running definition differs from the stored one (`virDomainIsUpdated`).
    public func isUpdated() throws(LibvirtError) -> Bool {
        try call("virDomainIsUpdated") { truth(virDomainIsUpdated($0)) }
    }

    /// Whether it starts with the host (`virDomainGetAutostart`).
    public func autostart() throws(LibvirtError) -> Bool {
        try call("virDomainGetAutostart") { pointer in
            var value: Int32 = 0
            return virDomainGetAutostart(pointer, &value) == 0 ? value != 0 : nil
        }
    }

    /// `virDomainSetAutostart`.
    public func setAutostart(_ on: Bool) throws(LibvirtError) {
        _ = try call("virDomainSetAutostart") { ok(virDomainSetAutostart($0, on ? 1 : 0)) }
    }

    /// Whether a managed save image waits to be restored at the next start (`virDomainHasManagedSaveImage`).
    public func hasManagedSave() throws(LibvirtError) -> Bool {
        try call("virDomainHasManagedSaveImage") { truth(virDomainHasManagedSaveImage($0, 0)) }
    }

    /// How many snapshots libvirt knows of it (`virDomainSnapshotNum`).
    public func snapshotCount() throws(LibvirtError) -> Int {
        try call("virDomainSnapshotNum") { ok(virDomainSnapshotNum($0, 0)).map(Int.init) }
    }

    /// How many checkpoints for incremental backups libvirt knows of it (`virDomainListAllCheckpoints`).
    public func checkpointCount() throws(LibvirtError) -> Int {
        try call("virDomainListAllCheckpoints") { ok(virDomainListAllCheckpoints($0, nil, 0)).map(Int.init) }
    }

    /// `virDomainManagedSaveRemove`.
    public func removeManagedSave() throws(LibvirtError) {
        _ = try call("virDomainManagedSaveRemove") { ok(virDomainManagedSaveRemove($0, 0)) }
    }
}

/// What `xml` should contain (`virDomainXMLFlags`).
public struct XMLFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Passwords too; needs a read-write connection.
    public static let secure = XMLFlags(rawValue: VIR_DOMAIN_XML_SECURE.rawValue)
    /// The stored definition even while the guest runs.
    public static let inactive = XMLFlags(rawValue: VIR_DOMAIN_XML_INACTIVE.rawValue)
    public static let updateCPU = XMLFlags(rawValue: VIR_DOMAIN_XML_UPDATE_CPU.rawValue)
    /// Fit for another host: without what this host added by itself.
    public static let migratable = XMLFlags(rawValue: VIR_DOMAIN_XML_MIGRATABLE.rawValue)
}
