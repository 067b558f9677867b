/// What crosses the control socket, and what `--format json` prints. Keys are stable; units stand in the key.
/// A change that removes or renames a key raises `ControlProtocolVersion.schema`.
public enum ControlProtocolVersion {
    public static let schema = 1
}

/// The side of a protected domain that this host holds.
public enum Role: String, Codable, Sendable {
    case primary, shadow
}

/// Where a protection stands, as `status` shows it.
public enum ProtectionState: String, Codable, Sendable, CaseIterable {
    /// The first copy is under way; a failure now loses the guest.
    case syncing
    /// The shadow holds a committed epoch and follows.
    case `protected`
    /// The guest runs, but the shadow does not follow at the moment; the reason says why.
    case degraded
    /// The user suspended the guest; the shadow holds its last epoch.
    case suspended
    /// A swap is under way: the guest stands still between the two sides.
    case swapping
    /// A swap was cut off after the point of no return: neither side runs until they can talk again.
    case inDoubt = "in_doubt"
    /// The guest went over to the other side (swap or failover).
    case failedOver = "failed_over"
}

/// What happens when the primary fails though its memory must not be rolled back, because it has disks on shared storage.
public enum OnFailure: String, Codable, Sendable, CaseIterable {
    /// Nothing; the administrator decides.
    case leave = "none"
    /// The guest boots cold at the peer once the primary is proved dead.
    case restart
}

/// How `protect` is to capture a guest's epochs.
public enum EngineChoice: String, Codable, Sendable, CaseIterable {
    /// Continuous where the guest and its QEMU can, periodic otherwise.
    case auto
    /// QEMU's COLO: many epochs a second.
    case continuous
    /// QEMU's background snapshots: an epoch every few seconds to minutes.
    case periodic
}

/// One disk of a protected domain.
public struct DiskStatus: Codable, Sendable, Equatable {
    public enum State: String, Codable, Sendable {
        /// Not begun: another disk is copied first, or the protection begins anew.
        case waiting
        /// The first copy, or what changed since the last one, is under way.
        case syncing
        /// Every write of the guest is part of an epoch.
        case ready
        /// The copy ended with an error; it is tried again.
        case failed
        /// On storage that both hosts share: not copied.
        case shared
    }
    /// As the domain's XML calls it: `vda`.
    public var target: String
    /// The replica's path on the shadow's host; absent while it is not known, and for shared disks.
    public var replica: String?
    public var state: State
    public var syncedBytes: UInt64
    public var totalBytes: UInt64

    enum CodingKeys: String, CodingKey {
        case target, replica, state
        case syncedBytes = "synced_bytes"
        case totalBytes = "total_bytes"
    }

    public init(target: String, replica: String? = nil, state: State, syncedBytes: UInt64 = 0, totalBytes: UInt64 = 0) {
        self.target = target
        self.replica = replica
        self.state = state
        self.syncedBytes = syncedBytes
        self.totalBytes = totalBytes
    }
}

/// One protected domain as one host sees it.
public struct DomainStatus: Codable, Sendable {
    public var domain: String
    public var uuid: String
    public var role: Role
    public var peer: String
    public var engine: String
    /// Why it is this engine; absent on the shadow's side.
    public var engineReason: String?
    public var state: ProtectionState
    /// Why the state is what it is, for a person; empty when there is nothing to say.
    public var reason: String
    /// ISO 8601 UTC: since when the state holds.
    public var since: String
    /// The last epoch captured (primary) or committed (shadow).
    public var epoch: UInt64
    public var committedEpoch: UInt64
    /// As configured by `protect --interval`.
    public var configuredIntervalMs: Double
    /// As used at the moment; larger while the peer lags behind.
    public var intervalMs: Double
    public var epochsPerSecond: Double
    public var pauseMsMedian: Double
    public var pauseMsP99: Double
    public var lagEpochs: UInt64
    public var lagBytes: UInt64
    /// Milliseconds since the last commit; absent before the first.
    public var lastCommitAgeMs: Double?
    /// What would be lost if the primary's host failed now: age of the last committed epoch's capture. Absent before the first.
    public var rpoMs: Double?
    /// Bytes of pages QEMU reported as dirty, and bytes that went over the wire, since protection began.
    public var bytesDirtied: UInt64
    public var bytesSent: UInt64
    /// The first copy's progress, while syncing.
    public var syncBytesDone: UInt64?
    public var syncBytesTotal: UInt64?
    /// (primary) All shadows; the fields above are of the best of them. Absent on the shadow's side.
    public var shadows: [ShadowStatus]?
    /// (primary) Shadows that its policy asks for and that do not follow, or are not there at all; absent without a policy.
    public var missingShadows: Int?
    /// Its disks; absent when none is part of the epochs.
    public var disks: [DiskStatus]?
    /// Bytes of disk writes that went over the wire, and the guest's writes that were captured, since protection began.
    public var diskBytesSent: UInt64?
    public var diskWrites: UInt64?
    public var counters: ProtectionCounters?
    /// Why the interval in use is what it is; absent on the shadow's side, and before the first epoch.
    public var intervalReason: String?
    /// How far the two sides drift apart, an alarm from 1; absent while the baseline is learned.
    public var driftScore: Double?

    enum CodingKeys: String, CodingKey {
        case domain, uuid, role, peer, engine, state, reason, since, epoch, disks, counters
        case shadows
        case missingShadows = "missing_shadows"
        case engineReason = "engine_reason"
        case intervalReason = "interval_reason"
        case driftScore = "drift_score"
        case committedEpoch = "committed_epoch"
        case configuredIntervalMs = "configured_interval_ms"
        case intervalMs = "interval_ms"
        case epochsPerSecond = "epochs_per_second"
        case pauseMsMedian = "pause_ms_median"
        case pauseMsP99 = "pause_ms_p99"
        case lagEpochs = "lag_epochs"
        case lagBytes = "lag_bytes"
        case lastCommitAgeMs = "last_commit_age_ms"
        case rpoMs = "rpo_ms"
        case bytesDirtied = "bytes_dirtied"
        case bytesSent = "bytes_sent"
        case syncBytesDone = "sync_bytes_done"
        case syncBytesTotal = "sync_bytes_total"
        case diskBytesSent = "disk_bytes_sent"
        case diskWrites = "disk_writes"
    }

    public init(domain: String, uuid: String, role: Role, peer: String, engine: String, state: ProtectionState, reason: String,
                since: String, configuredIntervalMs: Double) {
        self.domain = domain
        self.uuid = uuid
        self.role = role
        self.peer = peer
        self.engine = engine
        self.state = state
        self.reason = reason
        self.since = since
        self.configuredIntervalMs = configuredIntervalMs
        intervalMs = configuredIntervalMs
        epoch = 0
        committedEpoch = 0
        epochsPerSecond = 0
        pauseMsMedian = 0
        pauseMsP99 = 0
        lagEpochs = 0
        lagBytes = 0
        bytesDirtied = 0
        bytesSent = 0
    }
}

/// The answer to `status`.
public struct StatusReport: Codable, Sendable {
    public var schema = ControlProtocolVersion.schema
    public var host: String
    public var version: String
    /// ISO 8601 UTC.
    public var time: String
    public var domains: [DomainStatus]
    /// What telemetry costs on this host, per cent of one core over the last two minutes; absent while it measures nothing.
    public var telemetryCPUPercent: Double?
    /// The host was drained and takes no shadows; absent of one that takes them.
    public var isDraining: Bool?

    enum CodingKeys: String, CodingKey {
        case schema, host, version, time, domains
        case isDraining = "draining"
        case telemetryCPUPercent = "telemetry_cpu_percent"
    }

    public init(host: String, version: String, time: String, domains: [DomainStatus]) {
        self.host = host
        self.version = version
        self.time = time
        self.domains = domains
    }
}

/// The answer to `swap` and `failover`.
public struct HandoverReport: Codable, Sendable {
    public var schema = ControlProtocolVersion.schema
    public var domain: String
    public var from: String
    public var to: String
    /// The epoch that the guest went on from.
    public var epoch: UInt64
    /// Captured epochs that did not survive: 0 after a swap; absent when the primary could not be asked.
    public var epochsLost: UInt64?
    /// From the start of loading the device state to the guest running at the target, milliseconds.
    public var activationMs: Double
    /// From the guest's last instant here to running there, as the services saw it, milliseconds.
    public var outageMs: Double

    enum CodingKeys: String, CodingKey {
        case schema, domain, from, to, epoch
        case epochsLost = "epochs_lost"
        case activationMs = "activation_ms"
        case outageMs = "outage_ms"
    }

    public init(domain: String, from: String, to: String, epoch: UInt64, epochsLost: UInt64?, activationMs: Double, outageMs: Double) {
        self.domain = domain
        self.from = from
        self.to = to
        self.epoch = epoch
        self.epochsLost = epochsLost
        self.activationMs = activationMs
        self.outageMs = outageMs
    }
}

/// One line of `doctor`.
public struct Finding: Codable, Sendable {
    public enum Verdict: String, Codable, Sendable {
        case ok, warning, failed
    }
    /// Short stable name of the check: `kvm`, `x-colo`, `machine-type`.
    public var check: String
    public var verdict: Verdict
    /// What was found.
    public var detail: String
    /// What to do about it; empty when nothing.
    public var advice: String

    public init(_ check: String, _ verdict: Verdict, _ detail: String, advice: String = "") {
        self.check = check
        self.verdict = verdict
        self.detail = detail
        self.advice = advice
    }
}

/// The answer to `doctor`.
public struct DoctorReport: Codable, Sendable {
    public var schema = ControlProtocolVersion.schema
    public var host: String
    public var domain: String?
    public var findings: [Finding]

    public init(host: String, domain: String?, findings: [Finding]) {
        self.host = host
        self.domain = domain
        self.findings = findings
    }
}

/// A request: one JSON object on one line.
public struct ControlRequest: Codable, Sendable {
    public enum Verb: String, Codable, Sendable {
        case status, protect, unprotect, swap, failover, doctor, ping
        /// The second line of a connection whose first asked for a live migration: end it, the guest stays.
        case cancel
        case policy, placement, drain, undrain
        /// A call of libvirt's hook; nobody waits for the answer.
        case hook
        case kpi
        case drift
        /// Which hosts are trusted; with `to`: trust that one again.
        case hosts
        /// Of this host, or of `to`: a bundle of what there is to know.
        case diagnose
        case health
        case events
    }
    public var verb: Verb
    public var domain: String?
    /// `protect`, `doctor`, `swap` of a domain without a shadow: the peer's name in the configuration.
    public var to: String?
    public var intervalMs: Double?
    public var withoutDisks: Bool?
    /// `failover`: go ahead though the primary cannot be proved dead.
    public var force: Bool?
    /// `protect`: answer when protected (true) or as soon as the first copy has begun (false).
    public var wait: Bool?
    /// `protect`, `swap` with `to`: the peer's storage pool for all replicas, instead of one of the same name for each disk.
    public var pool: String?
    /// `protect`, `swap` with `to`: replicas may overwrite volumes that are not known to be replicas.
    public var discardStale: Bool?
    /// `protect`: limit of the disks' first copy.
    public var diskRateBytesPerSecond: UInt64?
    /// `protect`: what a failover does when disks are on shared storage.
    public var onFailure: OnFailure?
    /// `unprotect`: the replicas that were created for this guest go, too.
    public var deleteReplica: Bool?
    /// `swap` with `to`: how libvirt is to move the domain.
    public var migration: MigrationOptions?
    /// `protect`: how epochs are captured; absent: `auto`.
    public var engine: EngineChoice?
    /// `policy`: what to do with it.
    public var policy: PolicyRequest?
    /// `protect`: nothing is left of it once the guest has ended.
    public var ghost: Bool?
    /// `protect`: the domain's policy stays as it is.
    public var noPolicy: Bool?
    /// `drain`, `undrain`: say what would be done, and do nothing.
    public var dryRun: Bool?
    /// `protect`: all shadows to be had, when they are several or commit less often; `to` is the first of them.
    public var shadows: [ShadowChoice]?
    /// `unprotect`: the host whose shadow is to go; absent: all.
    public var from: String?
    /// `hook`: the call.
    public var hook: HookCall?
    public var events: EventQuery?
    /// `kpi`: samples from this moment on, milliseconds since 1970.
    public var sinceMs: UInt64?
    /// `kpi`: what the guest's agent tells, now, instead of samples.
    public var inside: Bool?
    /// `diagnose`: say which bundles there are; fetch the one of this name.
    public var list: Bool?
    public var bundle: String?

    enum CodingKeys: String, CodingKey {
        case verb, domain, to, force, wait, pool, migration, engine
        case hook
        case events
        case shadows, from
        case sinceMs = "since_ms"
        case inside
        case list, bundle
        case policy, ghost
        case noPolicy = "no_policy"
        case dryRun = "dry_run"
        case intervalMs = "interval_ms"
        case withoutDisks = "without_disks"
        case discardStale = "discard_stale"
        case diskRateBytesPerSecond = "disk_rate_bytes_per_second"
        case onFailure = "on_failure"
        case deleteReplica = "delete_replica"
    }

    public init(_ verb: Verb, domain: String? = nil, to: String? = nil, intervalMs: Double? = nil, withoutDisks: Bool? = nil,
                force: Bool? = nil, wait: Bool? = nil, pool: String? = nil, discardStale: Bool? = nil,
                diskRateBytesPerSecond: UInt64? = nil, onFailure: OnFailure? = nil, deleteReplica: Bool? = nil) {
        self.verb = verb
        self.domain = domain
        self.to = to
        self.intervalMs = intervalMs
        self.withoutDisks = withoutDisks
        self.force = force
        self.wait = wait
        self.pool = pool
        self.discardStale = discardStale
        self.diskRateBytesPerSecond = diskRateBytesPerSecond
        self.onFailure = onFailure
        self.deleteReplica = deleteReplica
    }
}

/// An error as the service tells it: what is wrong and what to do about it.
public struct ControlFailure: Codable, Error, Sendable, Equatable, CustomStringConvertible {
    public var message: String
    /// The way out; empty when the message says it all.
    public var advice: String

    public init(_ message: String, advice: String = "") {
        self.message = message
        self.advice = advice
    }

    public var description: String { advice.isEmpty ? message : "\(message). \(advice)" }
}

/// An answer: zero or more `progress` lines, then exactly one other; each one JSON object on one line.
public struct ControlResponse: Codable, Sendable {
    public var progress: Progress?
    public var failure: ControlFailure?
    public var status: StatusReport?
    public var handover: HandoverReport?
    public var doctor: DoctorReport?
    public var migration: MigrationReport?
    public var forecast: MigrationForecast?
    public var policy: PolicyReport?
    public var placement: PlacementReport?
    public var drain: DrainReport?
    public var kpi: KPIPage?
    public var drift: DriftReport?
    public var hosts: HostsReport?
    public var health: HealthReport?
    public var events: EventBatch?
    public var inside: GuestInside?
    public var bundles: BundleList?
    /// A plain success, said in words.
    public var done: String?

    public struct Progress: Codable, Sendable {
        public var message: String
        public var bytesDone: UInt64?
        public var bytesTotal: UInt64?
        /// It is said once and must be read: what is risked, what was decided.
        public var isNotice: Bool?

        enum CodingKeys: String, CodingKey {
            case message
            case isNotice = "notice"
            case bytesDone = "bytes_done"
            case bytesTotal = "bytes_total"
        }

        public init(_ message: String, bytesDone: UInt64? = nil, bytesTotal: UInt64? = nil, isNotice: Bool? = nil) {
            self.isNotice = isNotice
            self.message = message
            self.bytesDone = bytesDone
            self.bytesTotal = bytesTotal
        }
    }

    public init(progress: Progress? = nil, failure: ControlFailure? = nil, status: StatusReport? = nil,
                handover: HandoverReport? = nil, doctor: DoctorReport? = nil, migration: MigrationReport? = nil,
                forecast: MigrationForecast? = nil, done: String? = nil) {
        self.progress = progress
        self.failure = failure
        self.status = status
        self.handover = handover
        self.doctor = doctor
        self.migration = migration
        self.forecast = forecast
        self.done = done
    }

    /// True for the last line of an answer.
    public var isFinal: Bool { progress == nil }
}
