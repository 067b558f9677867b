import XCTest
@testable import Libvirt

final class ApiDescriptionTests: XCTestCase {
    func testEveryFunctionWeCallExists() throws {
        let api = try Self.description.get()
        var called: Set<String> = []
        for (file, text) in try moduleSources() {
            for name in try matches(#"\b(vir[A-Z]\w+)\("#, in: text).map(\.text) where !api.types.contains(name) {
                XCTAssertTrue(api.functions.contains(name), "\(file) calls \(name)")
                called.insert(name)
            }
        }
        XCTAssertGreaterThan(called.count, 90)
    }

    /// The name in an error is that of the function that failed.
    func testErrorsNameTheFunctionCalled() throws {
        let api = try Self.description.get()
        var checked = 0
        for (file, text) in try moduleSources() {
            for (name, end) in try matches(#"call\("(vir\w+)"\) \{"#, in: text) {
                XCTAssertTrue(api.functions.contains(name), "\(file): \(name)")
                XCTAssertTrue(text[end...].prefix(400).contains("\(name)("), "\(file): \(name) is not what is called")
                checked += 1
            }
        }
        XCTAssertGreaterThan(checked, 60)
    }

    private static let description = Result { try ApiDescription.load() }

    private func check<Number: NamedNumber>(_ type: String, _ values: KeyValuePairs<Number, String>,
                                            file: StaticString = #filePath, line: UInt = #line) throws {
        let api = try Self.description.get()
        for (value, name) in values {
            XCTAssertEqual(api.constants[name], Int64(value.rawValue), name, file: file, line: line)
            XCTAssertEqual(api.constantTypes[name], type, name, file: file, line: line)
            XCTAssertTrue(value.isKnown, name, file: file, line: line)
        }
        XCTAssertEqual(Set(values.map(\.key.rawValue)), Set(Number.names.keys), "\(Number.self): named but not checked", file: file, line: line)
        // A libvirt newer than this code may have more; this one may not.
        if try Connection.clientVersion() <= Version(9, 0, 0), Number.self != LibvirtError.Kind.self {
            let missing = api.constantTypes.filter { $0.value == type && !$0.key.hasSuffix("_LAST") && (api.constants[$0.key] ?? -1) >= 0 }
                .keys.filter { name in !values.contains { $0.value == name } }
            XCTAssertEqual(missing.sorted(), [], "\(Number.self) lacks", file: file, line: line)
        }
    }

    func testStates() throws {
        try check("virDomainState", [
            DomainState.noState: "VIR_DOMAIN_NOSTATE", .running: "VIR_DOMAIN_RUNNING", .blocked: "VIR_DOMAIN_BLOCKED",
            .paused: "VIR_DOMAIN_PAUSED", .shutdown: "VIR_DOMAIN_SHUTDOWN", .shutoff: "VIR_DOMAIN_SHUTOFF", .crashed: "VIR_DOMAIN_CRASHED",
            .powerManagementSuspended: "VIR_DOMAIN_PMSUSPENDED",
        ])
        try check("virDomainRunningReason", [
            RunningReason.unknown: "VIR_DOMAIN_RUNNING_UNKNOWN", .booted: "VIR_DOMAIN_RUNNING_BOOTED",
            .migrated: "VIR_DOMAIN_RUNNING_MIGRATED", .restored: "VIR_DOMAIN_RUNNING_RESTORED",
            .fromSnapshot: "VIR_DOMAIN_RUNNING_FROM_SNAPSHOT", .unpaused: "VIR_DOMAIN_RUNNING_UNPAUSED",
            .migrationCanceled: "VIR_DOMAIN_RUNNING_MIGRATION_CANCELED", .saveCanceled: "VIR_DOMAIN_RUNNING_SAVE_CANCELED",
            .wakeup: "VIR_DOMAIN_RUNNING_WAKEUP", .crashed: "VIR_DOMAIN_RUNNING_CRASHED", .postcopy: "VIR_DOMAIN_RUNNING_POSTCOPY",
            .postcopyFailed: "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED",
        ])
        try check("virDomainPausedReason", [
            PausedReason.unknown: "VIR_DOMAIN_PAUSED_UNKNOWN", .user: "VIR_DOMAIN_PAUSED_USER", .migration: "VIR_DOMAIN_PAUSED_MIGRATION",
            .save: "VIR_DOMAIN_PAUSED_SAVE", .dump: "VIR_DOMAIN_PAUSED_DUMP", .ioError: "VIR_DOMAIN_PAUSED_IOERROR",
            .watchdog: "VIR_DOMAIN_PAUSED_WATCHDOG", .fromSnapshot: "VIR_DOMAIN_PAUSED_FROM_SNAPSHOT",
            .shuttingDown: "VIR_DOMAIN_PAUSED_SHUTTING_DOWN", .snapshot: "VIR_DOMAIN_PAUSED_SNAPSHOT",
            .crashed: "VIR_DOMAIN_PAUSED_CRASHED", .startingUp: "VIR_DOMAIN_PAUSED_STARTING_UP",
            .postcopy: "VIR_DOMAIN_PAUSED_POSTCOPY", .postcopyFailed: "VIR_DOMAIN_PAUSED_POSTCOPY_FAILED",
        ])
        try check("virDomainShutdownReason", [
            ShutdownReason.unknown: "VIR_DOMAIN_SHUTDOWN_UNKNOWN", .user: "VIR_DOMAIN_SHUTDOWN_USER",
        ])
        try check("virDomainShutoffReason", [
            ShutoffReason.unknown: "VIR_DOMAIN_SHUTOFF_UNKNOWN", .shutdown: "VIR_DOMAIN_SHUTOFF_SHUTDOWN",
            .destroyed: "VIR_DOMAIN_SHUTOFF_DESTROYED", .crashed: "VIR_DOMAIN_SHUTOFF_CRASHED",
            .migrated: "VIR_DOMAIN_SHUTOFF_MIGRATED", .saved: "VIR_DOMAIN_SHUTOFF_SAVED", .failed: "VIR_DOMAIN_SHUTOFF_FAILED",
            .fromSnapshot: "VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT", .daemon: "VIR_DOMAIN_SHUTOFF_DAEMON",
        ])
        try check("virDomainCrashedReason", [
            CrashedReason.unknown: "VIR_DOMAIN_CRASHED_UNKNOWN", .panicked: "VIR_DOMAIN_CRASHED_PANICKED",
        ])
    }

    func testEventDetails() throws {
        try check("virDomainEventDefinedDetailType", [
            DefinedDetail.added: "VIR_DOMAIN_EVENT_DEFINED_ADDED", .updated: "VIR_DOMAIN_EVENT_DEFINED_UPDATED",
            .renamed: "VIR_DOMAIN_EVENT_DEFINED_RENAMED", .fromSnapshot: "VIR_DOMAIN_EVENT_DEFINED_FROM_SNAPSHOT",
        ])
        try check("virDomainEventStartedDetailType", [
            StartedDetail.booted: "VIR_DOMAIN_EVENT_STARTED_BOOTED", .migrated: "VIR_DOMAIN_EVENT_STARTED_MIGRATED",
            .restored: "VIR_DOMAIN_EVENT_STARTED_RESTORED", .fromSnapshot: "VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT",
            .wakeup: "VIR_DOMAIN_EVENT_STARTED_WAKEUP",
        ])
        try check("virDomainEventSuspendedDetailType", [
            SuspendedDetail.paused: "VIR_DOMAIN_EVENT_SUSPENDED_PAUSED", .migrated: "VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED",
            .ioError: "VIR_DOMAIN_EVENT_SUSPENDED_IOERROR", .watchdog: "VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG",
            .restored: "VIR_DOMAIN_EVENT_SUSPENDED_RESTORED", .fromSnapshot: "VIR_DOMAIN_EVENT_SUSPENDED_FROM_SNAPSHOT",
            .apiError: "VIR_DOMAIN_EVENT_SUSPENDED_API_ERROR", .postcopy: "VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY",
            .postcopyFailed: "VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED",
        ])
        try check("virDomainEventResumedDetailType", [
            ResumedDetail.unpaused: "VIR_DOMAIN_EVENT_RESUMED_UNPAUSED", .migrated: "VIR_DOMAIN_EVENT_RESUMED_MIGRATED",
            .fromSnapshot: "VIR_DOMAIN_EVENT_RESUMED_FROM_SNAPSHOT", .postcopy: "VIR_DOMAIN_EVENT_RESUMED_POSTCOPY",
            .postcopyFailed: "VIR_DOMAIN_EVENT_RESUMED_POSTCOPY_FAILED",
        ])
        try check("virDomainEventStoppedDetailType", [
            StoppedDetail.shutdown: "VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN", .destroyed: "VIR_DOMAIN_EVENT_STOPPED_DESTROYED",
            .crashed: "VIR_DOMAIN_EVENT_STOPPED_CRASHED", .migrated: "VIR_DOMAIN_EVENT_STOPPED_MIGRATED",
            .saved: "VIR_DOMAIN_EVENT_STOPPED_SAVED", .failed: "VIR_DOMAIN_EVENT_STOPPED_FAILED",
            .fromSnapshot: "VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT",
        ])
        try check("virDomainEventShutdownDetailType", [
            ShutdownDetail.finished: "VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED", .guest: "VIR_DOMAIN_EVENT_SHUTDOWN_GUEST",
            .host: "VIR_DOMAIN_EVENT_SHUTDOWN_HOST",
        ])
    }

    func testEventKinds() throws {
        let api = try Self.description.get()
        let kinds: [(String, LifecycleEvent.Event)] = [
            ("DEFINED", .defined(.added)), ("UNDEFINED", .undefined(detail: 0)), ("STARTED", .started(.booted)),
            ("SUSPENDED", .suspended(.paused)), ("RESUMED", .resumed(.unpaused)), ("STOPPED", .stopped(.shutdown)),
            ("SHUTDOWN", .shutdown(.finished)), ("PMSUSPENDED", .powerManagementSuspended(detail: 0)), ("CRASHED", .crashed(detail: 0)),
        ]
        for (name, event) in kinds {
            let number = try XCTUnwrap(api.constants["VIR_DOMAIN_EVENT_\(name)"])
            XCTAssertEqual(LifecycleEvent.Event(kind: Int32(number), detail: 0), event)
        }
    }

    func testJobsAndConnections() throws {
        try check("virDomainJobType", [
            JobType.none: "VIR_DOMAIN_JOB_NONE", .bounded: "VIR_DOMAIN_JOB_BOUNDED", .unbounded: "VIR_DOMAIN_JOB_UNBOUNDED",
            .completed: "VIR_DOMAIN_JOB_COMPLETED", .failed: "VIR_DOMAIN_JOB_FAILED", .cancelled: "VIR_DOMAIN_JOB_CANCELLED",
        ])
        try check("virDomainJobOperation", [
            JobOperation.unknown: "VIR_DOMAIN_JOB_OPERATION_UNKNOWN", .start: "VIR_DOMAIN_JOB_OPERATION_START",
            .save: "VIR_DOMAIN_JOB_OPERATION_SAVE", .restore: "VIR_DOMAIN_JOB_OPERATION_RESTORE",
            .migrationIn: "VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN", .migrationOut: "VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT",
            .snapshot: "VIR_DOMAIN_JOB_OPERATION_SNAPSHOT", .snapshotRevert: "VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT",
            .dump: "VIR_DOMAIN_JOB_OPERATION_DUMP", .backup: "VIR_DOMAIN_JOB_OPERATION_BACKUP",
            .snapshotDelete: "VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE",
        ])
        try check("virDomainBlockJobType", [
            BlockJobType.unknown: "VIR_DOMAIN_BLOCK_JOB_TYPE_UNKNOWN", .pull: "VIR_DOMAIN_BLOCK_JOB_TYPE_PULL",
            .copy: "VIR_DOMAIN_BLOCK_JOB_TYPE_COPY", .commit: "VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT",
            .activeCommit: "VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT", .backup: "VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP",
        ])
        try check("virConnectDomainEventBlockJobStatus", [
            BlockJobStatus.completed: "VIR_DOMAIN_BLOCK_JOB_COMPLETED", .failed: "VIR_DOMAIN_BLOCK_JOB_FAILED",
            .canceled: "VIR_DOMAIN_BLOCK_JOB_CANCELED", .ready: "VIR_DOMAIN_BLOCK_JOB_READY",
        ])
        try check("virConnectCloseReason", [
            CloseReason.error: "VIR_CONNECT_CLOSE_REASON_ERROR", .endOfFile: "VIR_CONNECT_CLOSE_REASON_EOF",
            .keepAlive: "VIR_CONNECT_CLOSE_REASON_KEEPALIVE", .client: "VIR_CONNECT_CLOSE_REASON_CLIENT",
        ])
        try check("virCPUCompareResult", [
            CPUComparison.incompatible: "VIR_CPU_COMPARE_INCOMPATIBLE", .identical: "VIR_CPU_COMPARE_IDENTICAL",
            .superset: "VIR_CPU_COMPARE_SUPERSET",
        ])
        try check("virStoragePoolState", [
            StoragePool.State.inactive: "VIR_STORAGE_POOL_INACTIVE", .building: "VIR_STORAGE_POOL_BUILDING",
            .running: "VIR_STORAGE_POOL_RUNNING", .degraded: "VIR_STORAGE_POOL_DEGRADED", .inaccessible: "VIR_STORAGE_POOL_INACCESSIBLE",
        ])
        try check("virStorageVolType", [
            StorageVolume.Kind.file: "VIR_STORAGE_VOL_FILE", .block: "VIR_STORAGE_VOL_BLOCK", .directory: "VIR_STORAGE_VOL_DIR",
            .network: "VIR_STORAGE_VOL_NETWORK", .networkDirectory: "VIR_STORAGE_VOL_NETDIR", .ploop: "VIR_STORAGE_VOL_PLOOP",
        ])
    }

    func testErrorNumbers() throws {
        try check("virErrorNumber", [
            LibvirtError.Kind.ok: "VIR_ERR_OK", .internalError: "VIR_ERR_INTERNAL_ERROR", .noMemory: "VIR_ERR_NO_MEMORY",
            .noSupport: "VIR_ERR_NO_SUPPORT", .unknownHost: "VIR_ERR_UNKNOWN_HOST", .noConnect: "VIR_ERR_NO_CONNECT",
            .invalidConnection: "VIR_ERR_INVALID_CONN", .invalidDomain: "VIR_ERR_INVALID_DOMAIN", .invalidArgument: "VIR_ERR_INVALID_ARG",
            .operationFailed: "VIR_ERR_OPERATION_FAILED", .callFailed: "VIR_ERR_CALL_FAILED", .xmlError: "VIR_ERR_XML_ERROR",
            .domainExists: "VIR_ERR_DOM_EXIST", .operationDenied: "VIR_ERR_OPERATION_DENIED", .xmlDetail: "VIR_ERR_XML_DETAIL",
            .systemError: "VIR_ERR_SYSTEM_ERROR",
            .rpc: "VIR_ERR_RPC", .noDomain: "VIR_ERR_NO_DOMAIN", .authenticationFailed: "VIR_ERR_AUTH_FAILED",
            .noStoragePool: "VIR_ERR_NO_STORAGE_POOL", .noStorageVolume: "VIR_ERR_NO_STORAGE_VOL",
            .operationInvalid: "VIR_ERR_OPERATION_INVALID", .configurationUnsupported: "VIR_ERR_CONFIG_UNSUPPORTED",
            .operationTimeout: "VIR_ERR_OPERATION_TIMEOUT", .hookScriptFailed: "VIR_ERR_HOOK_SCRIPT_FAILED",
            .argumentUnsupported: "VIR_ERR_ARGUMENT_UNSUPPORTED", .operationAborted: "VIR_ERR_OPERATION_ABORTED",
            .noDomainMetadata: "VIR_ERR_NO_DOMAIN_METADATA", .migrateUnsafe: "VIR_ERR_MIGRATE_UNSAFE", .overflow: "VIR_ERR_OVERFLOW",
            .blockCopyActive: "VIR_ERR_BLOCK_COPY_ACTIVE", .operationUnsupported: "VIR_ERR_OPERATION_UNSUPPORTED",
            .agentUnresponsive: "VIR_ERR_AGENT_UNRESPONSIVE", .resourceBusy: "VIR_ERR_RESOURCE_BUSY",
            .accessDenied: "VIR_ERR_ACCESS_DENIED", .storageVolumeExists: "VIR_ERR_STORAGE_VOL_EXIST",
            .cpuIncompatible: "VIR_ERR_CPU_INCOMPATIBLE", .xmlInvalidSchema: "VIR_ERR_XML_INVALID_SCHEMA",
            .authenticationUnavailable: "VIR_ERR_AUTH_UNAVAILABLE", .deviceMissing: "VIR_ERR_DEVICE_MISSING",
        ])
        XCTAssertEqual(try Self.description.get().constants["VIR_FROM_RPC"], Int64(LibvirtError.rpcDomain))
    }

    func testOptionSetsMatchTheRunningApi() throws {
        let api = try Self.description.get()
        let flags: [(UInt32, String)] = [
            (StartFlags.paused.rawValue, "VIR_DOMAIN_START_PAUSED"), (StartFlags.autodestroy.rawValue, "VIR_DOMAIN_START_AUTODESTROY"),
            (XMLFlags.migratable.rawValue, "VIR_DOMAIN_XML_MIGRATABLE"), (XMLFlags.secure.rawValue, "VIR_DOMAIN_XML_SECURE"),
            (BlockCopyFlags.transientJob.rawValue, "VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB"),
            (BlockCopyFlags.synchronousWrites.rawValue, "VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES"),
            (BlockJobAbortFlags.pivot.rawValue, "VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT"),
            (StatisticsFlags.enforce.rawValue, "VIR_CONNECT_GET_ALL_DOMAINS_STATS_ENFORCE_STATS"),
            (DestroyFlags.graceful.rawValue, "VIR_DOMAIN_DESTROY_GRACEFUL"),
            (MigrateFlags.peerToPeer.rawValue, "VIR_MIGRATE_PEER2PEER"), (MigrateFlags.persistDestination.rawValue, "VIR_MIGRATE_PERSIST_DEST"),
            (MigrateFlags.undefineSource.rawValue, "VIR_MIGRATE_UNDEFINE_SOURCE"), (MigrateFlags.nonSharedDisk.rawValue, "VIR_MIGRATE_NON_SHARED_DISK"),
            (MigrateFlags.postCopy.rawValue, "VIR_MIGRATE_POSTCOPY"), (MigrateFlags.parallel.rawValue, "VIR_MIGRATE_PARALLEL"),
            (DirtyRateFlags.dirtyBitmap.rawValue, "VIR_DOMAIN_DIRTYRATE_MODE_DIRTY_BITMAP"),
        ]
        for (value, name) in flags { XCTAssertEqual(api.constants[name], Int64(value), name) }
    }
}
