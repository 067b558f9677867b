import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform

/// One domain without a shadow on its way to another host, by libvirt's live migration. Libvirt sees to it that never two copies run; this makes
/// the volumes there, follows, cancels, and looks on both sides how it ended.
///
///     check -> receive (volumes at the peer) -> migrate -> conclude --> moved:  received (autostart, notes), notes here
///                                                            '-------> stayed: abandon (volumes removed)
///
/// From the moment before `receive` a record is on disk: libvirt goes on when this service dies, and the next one concludes.
final class LiveMigration: @unchecked Sendable {
    typealias Progress = @Sendable (ControlResponse.Progress) -> Void

    let domain: LocalDomain
    let peer: Peer
    let environment: HostEnvironment
    let options: MigrationOptions
    private let terms: ReplicaProvisioner.Terms
    private let isCancelled = Guarded(false)
    /// Of this attempt, once there is one.
    let attempt = Guarded<MigrationRecord?>(nil)
    let store: MigrationStore
    let client: PeerClient

    init(domain: LocalDomain, peer: Peer, environment: HostEnvironment, options: MigrationOptions, pool: String? = nil, discardStale: Bool = false) {
        self.domain = domain
        self.peer = peer
        self.environment = environment
        self.options = options
        terms = ReplicaProvisioner.Terms(pool: pool, discardStale: discardStale)
        store = MigrationStore(stateDirectory: environment.configuration.stateDirectory)
        client = environment.client(of: peer)
    }

    /// Ends it as soon as libvirt can; the guest stays.
    func cancel() { isCancelled.change { $0 = true } }

    // MARK: Beforehand

    /// What is known of the guest before anything is touched.
    struct Findings {
        var definition: DomainDefinition
        var plan: DiskPlan
        var persistentXML: String?
        var autostart: Bool
        var warnings: [String]
    }

    /// Throws what would make it fail for certain.
    func check() throws -> Findings {
        let handle = try domain.handle()
        guard try handle.isActive() else {
            throw ControlFailure("Domain \(domain.name) does not run", advice: "Start it with `virsh start \(domain.name)`, or move its definition with `virsh migrate --offline --persistent`")
        }
        try MigrationChecks.checkIdle(handle)
        // What an earlier attempt left there would be in the way.
        if let earlier = store.record(domain.uuid) { _ = tryToTakeBack(earlier) }
        // The live XML has the block jobs and the CPU that the guest really got; a migratable one lacks both.
        let live = try DomainDefinition(xml: handle.xml(flags: [.secure]))
        let plan = try DiskPlan.make(handle, live, ownFolders: environment.ownFolders)
        try plan.checkNoneIsRefused()
        let definition = try DomainDefinition(xml: handle.xml(flags: [.secure, .migratable]))
        let isPersistent = try handle.isPersistent()
        let facts = try askFacts(live, plan)
        return Findings(definition: definition, plan: plan, persistentXML: isPersistent ? try handle.xml(flags: [.secure, .inactive, .migratable]) : nil,
                        autostart: isPersistent ? try handle.autostart() : false, warnings: try MigrationChecks.judge(facts, definition, peer: peer.name))
    }

    private func askFacts(_ definition: DomainDefinition, _ plan: DiskPlan) throws -> HostFacts {
        // The peer compares with what its KVM can do; an emulated CPU is libvirt's to judge.
        let cpu = definition.type == "kvm" ? definition.cpuXML : nil
        let question = PeerRequest(.facts, host: environment.hostName, uuid: domain.uuid, domain: domain.name, xml: cpu, disks: plan.replicas,
                                   media: plan.media, pool: terms.pool, discardStale: terms.discardStale ? true : nil)
        do {
            let state = try client.ask(PeerRequest(.domainState, host: environment.hostName, uuid: domain.uuid))
            if let word = state.state, word != "absent" { throw IncomingMigration.alreadyThere(domain.name, peer.name, isActive: state.isLive == true, word) }
            guard let facts = try client.ask(question, timeoutMs: 20_000).facts else { throw ControlFailure("\(peer.name) gave no facts about itself") }
            return facts
        } catch let error as PeerUnreachable {
            throw ControlFailure("\(error)", advice: "Check that shadow-virt runs on \(peer.name), listens on \(peer.address), and has the same secret_file")
        }
    }

    // MARK: The way over

    /// Moves the guest. Throws a `ControlFailure` that says where it runs when it did not.
    func run(_ progress: Progress) throws -> MigrationReport {
        progress(.init("Looking whether \(peer.name) can take \(domain.name)"))
        let findings = try check()
        try throwIfCancelled()
        progress(.init("\(peer.name) makes room for its disks"))
        var record = MigrationRecord(uuid: domain.uuid, domain: domain.name, peer: peer.name, options: options, isPersistent: findings.persistentXML != nil,
                                     autostart: findings.autostart, sources: findings.plan.sources, copies: [:])
        attempt.change { $0 = record }
        try store.write(record)
        let received: PeerResponse
        do {
            received = try client.ask(PeerRequest(.receive, host: environment.hostName, session: record.session, uuid: domain.uuid, domain: domain.name, disks: findings.plan.replicas,
                                                  media: findings.plan.media, pool: terms.pool, discardStale: terms.discardStale ? true : nil), timeoutMs: 60_000)
        } catch {
            // A peer that refused has taken its part back.
            if (error as? PeerUnreachable)?.mayHaveArrived != true || takeBack(record).isClear { store.remove(domain.uuid) }
            throw error
        }
        record.copies = received.replicas ?? [:]
        let layout = ReplicaLayout(replicas: record.copies, visibleBytes: received.visibleBytes ?? [:], emptied: received.emptied ?? [])
        let begin = MonotonicTime.now
        var outcome: Followed
        do {
            try throwIfCancelled()
            let call = try MigrationCall(to: peer, options, xml: findings.definition.xml, persistentXML: findings.persistentXML, layout: layout,
                                         disks: findings.plan.replicas.map(\.target))
            if let limit = options.downtimeMs {
                let handle = try domain.handle()
                record.savedDowntimeMs = try handle.migrationDowntimeLimit()
                try handle.setMigrationDowntimeLimit(milliseconds: limit)
            }
            try store.write(record)
            outcome = migrate(call, begin: begin, progress)
        } catch {
            outcome = Followed(error: error)
        }
        outcome.totalMs = MonotonicTime.now.milliseconds(since: begin)
        outcome.warnings = findings.warnings + (received.warnings ?? []).filter { !findings.warnings.contains($0) }
        return try conclude(record, outcome, progress)
    }

    private func throwIfCancelled() throws {
        if isCancelled.read({ $0 }) { throw ControlFailure("The migration of \(domain.name) was cancelled before it began: the guest runs on \(environment.hostName)") }
    }

    /// What was seen on the way.
    struct Followed {
        var error: (any Error)?
        /// Why we ended it; nil: we did not.
        var reason: String?
        var isPostcopy = false
        var totalMs = 0.0
        var last: MigrationSample?
        var bandwidths: [UInt64] = []
        var throttlePercent: Int64?
        var complaint: String?
        var warnings: [String] = []
    }

    private func migrate(_ call: MigrationCall, begin: MonotonicTime, _ progress: Progress) -> Followed {
        let result = Guarded<Result<Void, any Error>?>(nil)
        Log.info("\(domain.name): live migration to \(peer.name) (\(call.uri)) begins")
        let connections = connections()
        startThread("migrate") { [domain] in
            let outcome = Result { try domain.handle().migrate(to: call.uri, parameters: call.parameters, flags: call.flags) }
            result.change { $0 = outcome }
        }
        var followed = follow(begin: begin, connections, progress) { result.wait(until: .now.adding(milliseconds: Self.lookEveryMs)) { $0 } != nil }
        if case .failure(let error)? = result.read({ $0 }) { followed.error = error }
        return followed
    }

    /// QEMU's connections to the peer, once they are there; nil when its process cannot be found.
    private func connections() -> QEMUConnections? {
        do {
            return QEMUConnections(pid: try domain.processID(), peer: peer.address.host)
        } catch {
            Log.debug("\(domain.name): QEMU's connections get no time limit: \(error)")
            return nil
        }
    }

    static let lookEveryMs = 200.0
    private static let tellEveryMs = 1000.0

    /// Looks at libvirt's job until `isOver`, which waits a little each time: tells how far it is, cancels, begins post-copy.
    func follow(begin: MonotonicTime, _ connections: QEMUConnections?, _ progress: Progress, isOver: () -> Bool) -> Followed {
        var followed = Followed()
        var watch = ConvergenceWatch()
        var told: MonotonicTime?
        while !isOver() {
            let now = MonotonicTime.now
            if followed.reason == nil { followed.reason = reasonToEnd(elapsedMs: now.milliseconds(since: begin), followed) }
            // Asked again until it is over: there is a moment before libvirt's job begins, in which there is nothing to abort.
            if followed.reason != nil, !followed.isPostcopy { try? domain.handle().abortJob() }
            guard let job = try? domain.handle().jobInfo(), job.operation == .migrationOut || job.type == .unbounded else {
                told = tell(followed.reason == nil ? "Libvirt prepares both sides" : "Cancelling", nil, told, now, progress)
                continue
            }
            let sample = MigrationSample(job)
            followed.last = sample
            if !followed.isPostcopy { connections?.limitSilence() }
            if sample.pass > 0, sample.bandwidthBytesPerSecond > 0 { followed.bandwidths.append(sample.bandwidthBytesPerSecond) }
            if let throttle = sample.throttlePercent, throttle > 0 { followed.throttlePercent = max(throttle, followed.throttlePercent ?? 0) }
            if options.postcopy, !followed.isPostcopy, sample.pass >= 2, followed.reason == nil { beginPostcopy(&followed, connections) }
            if watch.note(sample), !followed.isPostcopy {
                let complaint = watch.complaint(postcopy: options.postcopy, autoConverge: options.autoConverge)
                if followed.complaint == nil { Log.warning("\(domain.name): \(complaint)") }
                followed.complaint = complaint
            } else {
                followed.complaint = nil
            }
            let text = followed.reason != nil ? "Cancelling" : followed.isPostcopy ? "The guest runs on \(peer.name), the rest of its memory follows" : followed.complaint ?? sample.text
            told = tell(text, followed.reason == nil ? sample : nil, told, now, progress)
        }
        return followed
    }

    private func tell(_ text: String, _ sample: MigrationSample?, _ told: MonotonicTime?, _ now: MonotonicTime, _ progress: Progress) -> MonotonicTime? {
        if let told, now.milliseconds(since: told) < Self.tellEveryMs { return told }
        let isMemory = (sample?.pass ?? 0) > 0
        // Of a pass: the sum of all passes says nothing about how far it is.
        let total = sample.map { isMemory ? $0.memoryTotal : $0.diskTotal } ?? 0
        let done = sample.map { isMemory ? total - min(total, $0.memoryRemaining) : total - min(total, $0.diskRemaining) }
        progress(.init(text, bytesDone: total > 0 ? done : nil, bytesTotal: total > 0 ? total : nil))
        return now
    }

    private func reasonToEnd(elapsedMs: Double, _ followed: Followed) -> String? {
        guard !followed.isPostcopy else { return nil }
        if isCancelled.read({ $0 }) { return "was cancelled" }
        if let seconds = options.timeoutSeconds, elapsedMs > seconds * 1000 {
            let why = followed.complaint.map { ": " + $0 } ?? (followed.last.map { " (\($0.text))" } ?? "")
            return "was cancelled after \(Quantity.duration(milliseconds: seconds * 1000))\(why)"
        }
        return nil
    }

    private func beginPostcopy(_ followed: inout Followed, _ connections: QEMUConnections?) {
        // From now on a broken connection stops the guest, and a late one does not.
        connections?.lift()
        do {
            try domain.handle().startPostCopy()
            followed.isPostcopy = true
            Log.info("\(domain.name): post-copy begins, the guest runs on \(peer.name) from now on")
        } catch {
            // It may just have ended by itself; otherwise it goes on as it did, and the next look tries again.
            Log.debug("\(domain.name): post-copy did not begin: \(error)")
        }
    }
}

extension DiskPlan {
    /// What the guest runs on here, as the host's record of its disks has it.
    var sources: [String: ReplicaRecord.Disk] {
        var sources: [String: ReplicaRecord.Disk] = [:]
        for entry in entries {
            guard case .replicate(let request) = entry.decision else { continue }
            sources[entry.target] = .init(path: request.sourcePath, format: entry.format, capacityBytes: request.capacityBytes, pool: request.pool,
                                          origin: .formerPrimary, status: .inUse)
        }
        return sources
    }
}
