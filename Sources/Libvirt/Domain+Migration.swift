import CLibvirt

/// `virDomainMigrateFlags`.
public struct MigrateFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let live = MigrateFlags(rawValue: VIR_MIGRATE_LIVE.rawValue)
    /// The source's daemon talks to the target's; without it the client talks to both.
    public static let peerToPeer = MigrateFlags(rawValue: VIR_MIGRATE_PEER2PEER.rawValue)
    /// The target keeps a definition.
    public static let persistDestination = MigrateFlags(rawValue: VIR_MIGRATE_PERSIST_DEST.rawValue)
    /// The source forgets its own.
    public static let undefineSource = MigrateFlags(rawValue: VIR_MIGRATE_UNDEFINE_SOURCE.rawValue)
    /// Disks are copied whole, those of `migrate_disks` or all that can be.
    public static let nonSharedDisk = MigrateFlags(rawValue: VIR_MIGRATE_NON_SHARED_DISK.rawValue)
    public static let compressed = MigrateFlags(rawValue: VIR_MIGRATE_COMPRESSED.rawValue)
    /// An I/O error of the guest during the migration ends it.
    public static let abortOnError = MigrateFlags(rawValue: VIR_MIGRATE_ABORT_ON_ERROR.rawValue)
    /// The guest is slowed down when it dirties memory faster than that is sent.
    public static let autoConverge = MigrateFlags(rawValue: VIR_MIGRATE_AUTO_CONVERGE.rawValue)
    /// Allows `startPostCopy`; does not begin it.
    public static let postCopy = MigrateFlags(rawValue: VIR_MIGRATE_POSTCOPY.rawValue)
    /// QEMU's own connections are encrypted.
    public static let tls = MigrateFlags(rawValue: VIR_MIGRATE_TLS.rawValue)
    /// Several connections (QEMU's multifd).
    public static let parallel = MigrateFlags(rawValue: VIR_MIGRATE_PARALLEL.rawValue)
}

/// Names of `migrate`'s parameters (`VIR_MIGRATE_PARAM_...`).
public enum MigrateParameter {
    /// Where QEMU connects to: `tcp://host`.
    public static let uri = VIR_MIGRATE_PARAM_URI
    public static let destinationXML = VIR_MIGRATE_PARAM_DEST_XML
    /// The definition that the target keeps.
    public static let persistentXML = VIR_MIGRATE_PARAM_PERSIST_XML
    /// MiB/s, `.ulong`.
    public static let bandwidth = VIR_MIGRATE_PARAM_BANDWIDTH
    /// Once for each disk: its target.
    public static let migrateDisks = VIR_MIGRATE_PARAM_MIGRATE_DISKS
    /// A method's name: `xbzrle`, `zstd`, …
    public static let compression = VIR_MIGRATE_PARAM_COMPRESSION
    /// `.int`.
    public static let parallelConnections = VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS
    /// The name that the target's certificate must have.
    public static let tlsDestination = VIR_MIGRATE_PARAM_TLS_DESTINATION
}

extension Domain {
    /// Moves the running guest to the host that `uri` names, as this host's daemon reaches it (`virDomainMigrateToURI3`). Returns when it is
    /// over. With `.peerToPeer` the daemon goes on when the client dies. `abortJob` from another thread ends it with `.operationAborted`.
    public func migrate(to uri: String, parameters: TypedParameters, flags: MigrateFlags) throws(LibvirtError) {
        _ = try call("virDomainMigrateToURI3") { pointer in
            parameters.withC { ok(virDomainMigrateToURI3(pointer, uri, $0, UInt32(bitPattern: $1), flags.rawValue)) }
        }
    }

    /// From now on the guest runs at the target, and pages come after it as it needs them; there is no way back
    /// (`virDomainMigrateStartPostCopy`).
    public func startPostCopy() throws(LibvirtError) {
        _ = try call("virDomainMigrateStartPostCopy") { ok(virDomainMigrateStartPostCopy($0, 0)) }
    }

    /// How long the guest may stand still at the end of a migration, milliseconds (`virDomainMigrateGetMaxDowntime`).
    public func migrationDowntimeLimit() throws(LibvirtError) -> UInt64 {
        try call("virDomainMigrateGetMaxDowntime") { pointer in
            var milliseconds: UInt64 = 0
            return virDomainMigrateGetMaxDowntime(pointer, &milliseconds, 0) == 0 ? milliseconds : nil
        }
    }

    /// For all migrations of this QEMU process from now on (`virDomainMigrateSetMaxDowntime`).
    public func setMigrationDowntimeLimit(milliseconds: UInt64) throws(LibvirtError) {
        _ = try call("virDomainMigrateSetMaxDowntime") { ok(virDomainMigrateSetMaxDowntime($0, milliseconds, 0)) }
    }
}
