import ControlProtocol
import Foundation
import Libvirt
import Platform

/// How it ended: looked at on both sides, whatever libvirt's call said.
extension LiveMigration {
    /// Long enough for a libvirtd that is started again to have cleaned up.
    private static let concludeWithinMs = 60_000.0

    /// Looks on both sides, whatever libvirt's call said, and finishes or takes back.
    func conclude(_ record: MigrationRecord, _ followed: Followed, _ progress: Progress) throws -> MigrationReport {
        let here = try settle(progress)
        if here.isActive { restoreDowntime(record) }
        if here.isActive, here.isStranded {
            throw failure("stopped in the middle of post-copy", "The guest stands still, its memory is on both hosts. When the network is back, resume it with `virsh migrate --postcopy --postcopy-resume \(domain.name) \(uri)`", followed)
        }
        // Still defined here, so it did not leave: what it ran on here is what counts.
        if here.ended {
            let (remark, isClear, _) = takeBack(record)
            if isClear { store.remove(record.uuid) }
            throw ControlFailure("The migration of \(domain.name) to \(peer.name) failed: the guest ended on \(environment.hostName) meanwhile", advice: remark)
        }
        guard here.isActive else { return try moved(record, followed) }
        let (remark, isClear, runsThere) = takeBack(record)
        if isClear { store.remove(record.uuid) }
        if runsThere, !here.isPaused { throw stopSecondCopy() }
        let state = here.isPaused ? "is suspended on" : "runs on"
        Log.warning("\(domain.name): live migration to \(peer.name) did not succeed; the guest \(state) \(environment.hostName)\(followed.error.map { ": \($0)" } ?? "")")
        if let reason = followed.reason {
            throw ControlFailure("The migration of \(domain.name) to \(peer.name) \(reason). The guest \(state) \(environment.hostName), as before", advice: remark)
        }
        throw failure("failed; the guest \(state) \(environment.hostName), as before", remark, followed)
    }

    private var uri: String { options.uri ?? peer.libvirtURI }

    private func failure(_ what: String, _ remark: String, _ followed: Followed) -> ControlFailure {
        if let refusal = followed.error as? ControlFailure { return ControlFailure(refusal.message, advice: [refusal.advice, remark].filter { !$0.isEmpty }.joined(separator: ". ")) }
        guard let error = followed.error as? LibvirtError else {
            return ControlFailure("The migration of \(domain.name) to \(peer.name) \(what)" + (followed.error.map { ": \($0)" } ?? ""), advice: remark)
        }
        let advice = MigrationCall.advice(for: error, uri: uri, peer: peer.name)
        return ControlFailure("The migration of \(domain.name) to \(peer.name) \(what): \(error.message)", advice: remark.isEmpty ? advice : "\(advice). \(remark)")
    }

    private struct Here {
        var isActive: Bool
        var isPaused = false
        /// Post-copy broke: it cannot run here any more.
        var isStranded = false
        /// It was shut down or died here; it did not leave.
        var ended = false
    }

    /// The guest on this host, once no migration of it is under way any more.
    private func settle(_ progress: Progress) throws -> Here {
        let deadline = MonotonicTime.now.adding(milliseconds: Self.concludeWithinMs)
        while true {
            do {
                let handle = try domain.handle()
                guard try handle.isActive() else {
                    let (state, reason) = try handle.state()
                    return Here(isActive: false, ended: [.shutoff, .crashed].contains(state) && !(state == .shutoff && [ShutoffReason.migrated, .unknown].map(\.rawValue).contains(reason)))
                }
                let job = try handle.jobInfo()
                let isBusy = job.operation == .migrationOut && (job.type == .bounded || job.type == .unbounded)
                let (state, reason) = try handle.state()
                if !isBusy || reason == PausedReason.postcopyFailed.rawValue && state == .paused {
                    let isStranded = state == .paused && [PausedReason.postcopy.rawValue, PausedReason.postcopyFailed.rawValue].contains(reason)
                    return Here(isActive: true, isPaused: state == .paused, isStranded: isStranded)
                }
            } catch let error as LibvirtError where error.isNoDomain {
                return Here(isActive: false)
            } catch {
                progress(.init("Waiting for libvirt here: \(error)"))
            }
            guard MonotonicTime.now < deadline else {
                throw ControlFailure("How the migration of \(domain.name) ended cannot be known: libvirt on \(environment.hostName) does not answer or is busy with it",
                                     advice: "`virsh domstate \(domain.name)` on both hosts tells; the service finishes what is left when it starts the next time")
            }
            usleep(200_000)
        }
    }

    private func restoreDowntime(_ record: MigrationRecord) {
        guard let saved = record.savedDowntimeMs else { return }
        do { try domain.handle().setMigrationDowntimeLimit(milliseconds: saved) } catch { Log.debug("\(domain.name): \(error)") }
    }

    /// Libvirt lets the source run on when the target's word that the guest runs there is lost (qemuMigrationSrcPerformPeer2Peer3 says so itself).
    private func stopSecondCopy() -> ControlFailure {
        var what = "the copy here is suspended"
        do { try domain.handle().suspend() } catch { what = "the copy here could not be suspended: \(error)" }
        Log.error("\(domain.name) runs on \(peer.name), and libvirt let it run on here as well; \(what)")
        return ControlFailure("Domain \(domain.name) runs on \(peer.name), and libvirt let it run on \(environment.hostName) as well: \(what)",
                              advice: "The connection broke at the last moment. Find out which copy is the right one, then `virsh destroy` the other; `virsh resume \(domain.name)` lets the one here run")
    }

    /// The guest is here: whatever was made for it at the peer goes. Returns what an administrator should know, whether all is clear, and whether the guest
    /// runs there as well.
    func takeBack(_ record: MigrationRecord) -> (remark: String, isClear: Bool, runsThere: Bool) {
        let begin = MonotonicTime.now
        while true {
            let problem: String
            do {
                let answer = try askToAbandon(record)
                guard answer.isLive == true else { return ((answer.warnings ?? []).joined(separator: ". "), true, false) }
                if answer.phase == .running { return ("", false, true) }
                problem = "it still waits for the guest (\(answer.state ?? ""))"
            } catch {
                problem = "\(error)"
            }
            // Its half of a broken migration ends a moment later than ours.
            guard MonotonicTime.now.milliseconds(since: begin) < 10_000 else {
                let left = record.copies.values.sorted()
                Log.warning("\(domain.name): \(peer.name) was not told that the guest stays here: \(problem)")
                return (left.isEmpty ? "" : "\(peer.name) has not removed what it made for this (\(problem)): \(left.joined(separator: ", ")). It is asked again by itself", false, false)
            }
            usleep(500_000)
        }
    }

    private func askToAbandon(_ record: MigrationRecord) throws -> PeerResponse {
        try client.ask(PeerRequest(.abandon, host: environment.hostName, session: record.session, uuid: domain.uuid, domain: domain.name), timeoutMs: 30_000)
    }

    /// The peer does not know yet that this attempt ended with the guest here.
    var mustBeTakenBack: Bool {
        guard let record = attempt.read({ $0 }) else { return false }
        return store.record(record.uuid)?.session == record.session && (try? domain.handle().isActive()) == true
    }

    /// Whether the peer has heard now that an attempt came to nothing; true as well when there is nothing to tell it any more.
    func tryToTakeBack(_ record: MigrationRecord) -> Bool {
        // Gone meanwhile: whoever moved or ended it knows what became of it.
        guard record.peer == peer.name, store.record(record.uuid)?.session == record.session, (try? domain.handle().isActive()) == true else { return true }
        do {
            guard try askToAbandon(record).isLive != true else { return false }
            store.remove(record.uuid)
            Log.info("\(domain.name): \(peer.name) has removed what it made for a migration that did not succeed")
            return true
        } catch {
            Log.debug("\(domain.name): \(error)")
            return false
        }
    }

    /// The guest is not here any more: sees that it is there, and finishes.
    private func moved(_ record: MigrationRecord, _ followed: Followed) throws -> MigrationReport {
        let answer = try askReceived(record)
        guard answer.isLive == true else {
            store.remove(record.uuid)
            throw ControlFailure("After the migration \(domain.name) runs neither on \(environment.hostName) nor on \(peer.name) (\(answer.state ?? "unknown") there)",
                                 advice: "It may have been shut down meanwhile; /var/log/libvirt/qemu/\(domain.name).log on both hosts tells")
        }
        var warnings = followed.warnings + (answer.warnings ?? [])
        if followed.error != nil { warnings.append("Libvirt reported an error at the end, but the guest runs on \(peer.name): \(followed.error.map { "\($0)" } ?? "")") }
        do {
            let noter = ReplicaProvisioner(uuid: domain.uuid, domain: domain.name, environment: environment)
            try noter.noteWentOver(record.sources)
            if !record.sources.isEmpty {
                warnings.append("What it ran on is left on \(environment.hostName): \(record.sources.values.map(\.path).sorted().joined(separator: ", ")). `shadow-virt protect` on \(peer.name) takes it as the replica, or delete it")
            }
        } catch {
            Log.warning("\(domain.name): what became of its disks here was not noted: \(error)")
        }
        store.remove(record.uuid)
        let figures = answer.migration
        if options.bandwidthBytesPerSecond == nil, let bandwidth = typicalBandwidth(followed, figures) { store.note(bandwidth: bandwidth, to: peer.name) }
        let report = MigrationReport(
            domain: domain.name, from: environment.hostName, to: peer.name, mode: followed.isPostcopy ? .postcopy : .precopy, totalMs: followed.totalMs,
            downtimeMs: figures?.downtimeMs, memoryBytes: figures?.memoryBytes ?? followed.last?.memoryProcessed ?? 0,
            diskBytes: record.sources.values.reduce(0) { $0 + $1.capacityBytes }, passes: figures?.passes ?? followed.last?.pass,
            throttlePercent: followed.throttlePercent, persistent: record.isPersistent, autostart: record.autostart, disks: record.copies, warnings: warnings)
        Log.info("\(domain.name): moved to \(peer.name) by live migration in \(Int(report.totalMs)) ms, downtime \(report.downtimeMs.map { "\(Int($0)) ms" } ?? "unknown")")
        return report
    }

    /// The median of what was seen; of a migration too short to be seen, its average.
    private func typicalBandwidth(_ followed: Followed, _ figures: MigrationFigures?) -> UInt64? {
        let sorted = followed.bandwidths.sorted()
        if !sorted.isEmpty { return sorted[sorted.count / 2] }
        guard let figures, figures.bandwidthBytesPerSecond > 0 else { return nil }
        return figures.bandwidthBytesPerSecond
    }

    private func askReceived(_ record: MigrationRecord) throws -> PeerResponse {
        let begin = MonotonicTime.now
        while true {
            do {
                return try client.ask(PeerRequest(.received, host: environment.hostName, session: record.session, uuid: domain.uuid, domain: domain.name, autostart: record.autostart), timeoutMs: 30_000)
            } catch {
                guard MonotonicTime.now.milliseconds(since: begin) < 30_000 else {
                    throw ControlFailure("Domain \(domain.name) left \(environment.hostName), and \(peer.name) cannot be asked about it: \(error)",
                                         advice: "Libvirt moved it: look with `virsh list` there. Autostart is set when this service reaches \(peer.name) at its next start")
                }
                usleep(500_000)
            }
        }
    }

    // MARK: After a restart of the service

    /// Follows a migration that an earlier service began, and finishes it. Blocks until it is over.
    func resume(_ record: MigrationRecord) throws -> MigrationReport {
        attempt.change { $0 = record }
        let begin = MonotonicTime.now
        var followed = follow(begin: begin, nil, { _ in }) {
            usleep(UInt32(Self.lookEveryMs) * 1000)
            guard let handle = try? domain.handle(), (try? handle.isActive()) == true, let job = try? handle.jobInfo() else { return true }
            return job.operation != .migrationOut || job.type != .unbounded && job.type != .bounded
        }
        followed.totalMs = MonotonicTime.now.milliseconds(since: begin)
        return try conclude(record, followed) { _ in }
    }
}
