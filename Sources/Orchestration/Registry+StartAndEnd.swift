import Configuration
import ControlProtocol
import Foundation
import Libvirt
import Platform
import ReplicaStore

/// Start and end of the service: what an earlier one left is taken up, and all is left so that the next one can.
extension Registry {
    private static let thawMs = 3000.0

    /// Whether what an earlier service left is known by the deadline. Before that no peer may get an answer: "unknown session" about a guest that runs here
    /// would tell the other side that it may run there.
    public func isTakenUp(by deadline: MonotonicTime) -> Bool { isTakenUp.wait(until: deadline) { $0 ? true : nil } ?? false }

    /// Takes up what an earlier service left: guests first, shadows after.
    public func resume() {
        defer { isTakenUp.change { $0 = true } }
        resumeMigrations()
        let records = environment.records.load()
        for record in records where record.role == .primary { resumePrimary(record) }
        for record in records where record.role == .shadow { resumeShadow(record) }
        keeper.begin()
        announce()
    }

    private func resumePrimary(_ record: ProtectionRecord) {
        let domain = LocalDomain(uuid: record.uuid, name: record.domain, connect: environment.connect)
        // A guest left standing in an epoch must not wait for anything; a committed hand-over must.
        if record.phase == .protecting {
            HeldProcess.letGo(domain)
            // The engine periodic puts its guest right when its protection begins: that may take a while.
            if record.engine != .periodic { thaw(domain) }
        }
        for entry in record.entries where environment.configuration.peer(named: entry.peer) == nil {
            Log.error("\(record.domain) has a shadow on \(entry.peer), which the configuration does not list any more: list it again, and restart this service")
        }
        guard let peer = peerOrdered(by: record) else { return Log.error("\(record.domain) runs unprotected") }
        let protection = PrimaryProtection(resuming: record, environment: environment, peer: peer) { [weak self] in self?.forget($0) }
        entries.change { $0.primaries[record.uuid] = protection }
        protection.start()
    }

    /// The host whose answer counts; nil: the guest may run here, and there is no host to protect it to.
    private func peerOrdered(by record: ProtectionRecord) -> Peer? {
        if let peer = environment.configuration.peer(named: record.peer) { return peer }
        guard record.phase == .protecting else {
            // It was told to run the guest, whoever else is listed: nobody can ask it, so the guest stays in doubt, and `status` says so.
            return Peer(name: record.peer, address: PeerAddress(host: "", port: 0), libvirtURI: "")
        }
        return record.entries.lazy.compactMap { [environment] in environment.configuration.peer(named: $0.peer) }.first
    }

    /// A QEMU that does not answer, or a libvirt that hangs behind it, holds up nobody else's guest.
    private func thaw(_ domain: LocalDomain) {
        let isDone = Guarded(false)
        startThread("thaw") {
            do {
                if try COLOControl(domain: domain).thaw() == "colo" { Log.info("\(domain.name): left in COLO by an earlier service; it runs on") }
            } catch {
                Log.debug("\(domain.name): \(error)")
            }
            isDone.change { $0 = true }
        }
        _ = isDone.wait(until: MonotonicTime.now.adding(milliseconds: Self.thawMs)) { $0 ? true : nil }
    }

    private func resumeShadow(_ record: ProtectionRecord) {
        let domain = LocalDomain(uuid: record.uuid, name: record.domain, connect: environment.connect)
        guard record.phase == .activated || record.phase == .running else {
            // Its primary may ask for a new shadow at any moment: the new one's record must not go with the old one's.
            return admission.withLock {
                guard self.shadow(record.uuid) == nil else { return }
                repairReplicas(of: record)
                // Its device state died with the service: it cannot run, but it has most of the guest's memory.
                if let left = ShadowProtection(leftBy: record, environment: environment) { return keep(left) }
                Log.info("\(record.domain): removing the shadow that an earlier service left; \(record.peer) makes a new one")
                ShadowProtection.removeShadowDomain(domain, environment)
                environment.records.remove(record.uuid)
            }
        }
        // A guest that came here and has ended since is an ordinary domain.
        do {
            guard try domain.handle().isActive() else { return environment.records.remove(record.uuid) }
        } catch let error as LibvirtError where error.isNoDomain {
            return environment.records.remove(record.uuid)
        } catch {
            Log.warning("\(record.domain): \(error)")
        }
        let shadow = ShadowProtection(activated: record, environment: environment)
        entries.change { $0.shadows[record.uuid] = shadow }
        reattach(shadow)
    }

    /// A primary that lives takes its shadow up again within seconds.
    private static let leftOverSeconds = 600

    private func keep(_ left: ShadowProtection) {
        entries.change { $0.shadows[left.uuid] = left }
        DispatchQueue.global().asyncAfter(deadline: .now() + .seconds(Self.leftOverSeconds)) { [weak self, weak left] in
            guard let self, let left else { return }
            Log.info("\(left.name): \(left.primary) did not take up its shadow here within \(Self.leftOverSeconds) s; removing it")
            removeLeftOver(left)
        }
    }

    func removeLeftOver(_ left: ShadowProtection) {
        admission.withLock {
            guard entries.read({ $0.shadows[left.uuid] === left }) else { return }
            do { try left.discard() } catch { Log.warning("\(left.name): \(error)") }
            entries.change { $0.shadows[left.uuid] = nil }
        }
    }

    /// After a loss of power: what the disks' journal has goes into the replicas, so that they are one epoch's, whatever becomes of them.
    private func repairReplicas(of record: ProtectionRecord) {
        let folder = ReplicaRecordStore(stateDirectory: environment.configuration.stateDirectory).epochFolder(record.uuid)
        do {
            guard let repair = try ReplicaSet.pendingRepair(folder: folder) else { return }
            try ReplicaSet.recover(folder: folder)
            Log.info("\(record.domain): its replicas here are whole again, as of epoch \(repair.lastEpoch)")
        } catch {
            // The worker of the service before may be closing them still.
            Log.warning("\(record.domain): its replicas here were not looked through: \(error)")
        }
    }

    /// Ends all protections in an orderly way; their records stay.
    public func shutDown() {
        let replies = entries.read { Array($0.primaries.values) }.map { protection in
            let reply = Reply<Void>()
            protection.post(.shutdown(reply))
            return (protection, reply)
        }
        let begin = MonotonicTime.now
        for (protection, reply) in replies {
            // A guest that is held for a swap would stand still until the next service.
            while reply.isOpen, MonotonicTime.now.milliseconds(since: begin) < (protection.board.state == .swapping ? Self.swapMs : Self.endMs) {
                _ = reply.poll(until: MonotonicTime.now.adding(milliseconds: 100))
            }
        }
    }

    /// Of an orderly end. A swap is over, one way or the other, after its three waits of 15 s each: held, loaded, told to run.
    private static let endMs = 8000.0, swapMs = 50_000.0
}
