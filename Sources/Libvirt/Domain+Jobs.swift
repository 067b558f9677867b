import CLibvirt

/// `virDomainJobType`.
public struct JobType: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    /// No job.
    public static let none = JobType(rawValue: 0)
    /// With a known end.
    public static let bounded = JobType(rawValue: 1)
    /// Without, such as a migration.
    public static let unbounded = JobType(rawValue: 2)
    public static let completed = JobType(rawValue: 3)
    public static let failed = JobType(rawValue: 4)
    public static let cancelled = JobType(rawValue: 5)
    public static let names: [Int32: String] = [
        0: "none", 1: "bounded", 2: "unbounded", 3: "completed", 4: "failed", 5: "cancelled",
    ]
}

/// `virDomainJobOperation`.
public struct JobOperation: NamedNumber {
    public let rawValue: Int32
    public init(rawValue: Int32) { self.rawValue = rawValue }
    public static let unknown = JobOperation(rawValue: 0)
    public static let start = JobOperation(rawValue: 1)
    public static let save = JobOperation(rawValue: 2)
    public static let restore = JobOperation(rawValue: 3)
    public static let migrationIn = JobOperation(rawValue: 4)
    public static let migrationOut = JobOperation(rawValue: 5)
    public static let snapshot = JobOperation(rawValue: 6)
    public static let snapshotRevert = JobOperation(rawValue: 7)
    public static let dump = JobOperation(rawValue: 8)
    public static let backup = JobOperation(rawValue: 9)
    public static let snapshotDelete = JobOperation(rawValue: 10)
    public static let names: [Int32: String] = [
        0: "unknown", 1: "start", 2: "save", 3: "restore", 4: "migration in", 5: "migration out", 6: "snapshot", 7: "snapshot revert",
        8: "dump", 9: "backup", 10: "snapshot delete",
    ]
}

/// `virDomainGetJobStatsFlags`.
public struct JobStatisticsFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Of the last job that ended; read once, unless `keepCompleted`.
    public static let completed = JobStatisticsFlags(rawValue: VIR_DOMAIN_JOB_STATS_COMPLETED.rawValue)
    public static let keepCompleted = JobStatisticsFlags(rawValue: VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED.rawValue)
}

/// `virDomainDirtyRateCalcFlags`.
public struct DirtyRateFlags: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    /// Every page counts; KVM only, libvirt 8.1.
    public static let dirtyBitmap = DirtyRateFlags(rawValue: VIR_DOMAIN_DIRTYRATE_MODE_DIRTY_BITMAP.rawValue)
}

/// Progress of a domain's job (`virDomainGetJobStats`). Bytes unless the name says otherwise; nil was not reported.
public struct JobInfo: Sendable, Hashable {
    public let type: JobType
    /// Everything libvirt reported, by its names (`VIR_DOMAIN_JOB_...`).
    public let parameters: TypedParameters

    public var operation: JobOperation? {
        parameters.integer(VIR_DOMAIN_JOB_OPERATION).map { JobOperation(rawValue: Int32(truncatingIfNeeded: $0)) }
    }
    public var elapsedMilliseconds: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_TIME_ELAPSED) }
    public var remainingMilliseconds: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_TIME_REMAINING) }
    public var downtimeMilliseconds: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DOWNTIME) }
    public var dataTotal: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DATA_TOTAL) }
    public var dataProcessed: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DATA_PROCESSED) }
    public var dataRemaining: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DATA_REMAINING) }
    public var memoryTotal: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_TOTAL) }
    public var memoryProcessed: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_PROCESSED) }
    public var memoryRemaining: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_REMAINING) }
    /// Of memory, a second.
    public var memoryBytesPerSecond: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_BPS) }
    public var memoryPageSize: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_PAGE_SIZE) }
    /// Passes over the guest's memory, the one under way included.
    public var memoryIteration: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_ITERATION) }
    /// Percent of its CPU time that auto-converge takes from the guest.
    public var autoConvergeThrottle: Int64? { parameters.integer(VIR_DOMAIN_JOB_AUTO_CONVERGE_THROTTLE) }
    /// Pages a second.
    public var memoryDirtyRate: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_MEMORY_DIRTY_RATE) }
    public var diskTotal: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DISK_TOTAL) }
    public var diskProcessed: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DISK_PROCESSED) }
    public var diskRemaining: UInt64? { parameters.unsigned(VIR_DOMAIN_JOB_DISK_REMAINING) }
    public var errorMessage: String? { parameters.string(VIR_DOMAIN_JOB_ERRMSG) }
}

extension Domain {
    /// The job that runs on the domain, `.none` if there is none (`virDomainGetJobStats`).
    public func jobInfo(flags: JobStatisticsFlags = []) throws(LibvirtError) -> JobInfo {
        try call("virDomainGetJobStats") { pointer in
            var (type, count): (Int32, Int32) = (0, 0)
            var parameters: UnsafeMutablePointer<virTypedParameter>?
            guard virDomainGetJobStats(pointer, &type, &parameters, &count, flags.rawValue) == 0 else { return nil }
            return JobInfo(type: JobType(rawValue: type), parameters: .owned(parameters, count: count))
        }
    }

    /// Asks the running job to stop; returns before it has (`virDomainAbortJob`).
    public func abortJob() throws(LibvirtError) {
        _ = try call("virDomainAbortJob") { ok(virDomainAbortJob($0)) }
    }

    /// Starts to measure how fast the guest dirties memory, for so many seconds (1...60); the result comes as the statistics' `dirtyRate`
    /// (`virDomainStartDirtyRateCalc`). Without flags some pages are looked at and the rest is inferred, which works with every accelerator.
    public func startDirtyRateCalculation(seconds: Int32, flags: DirtyRateFlags = []) throws(LibvirtError) {
        _ = try call("virDomainStartDirtyRateCalc") { ok(virDomainStartDirtyRateCalc($0, seconds, flags.rawValue)) }
    }
}
