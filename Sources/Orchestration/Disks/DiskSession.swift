import ControlProtocol
import Libvirt
import Platform

/// The disks of one attempt to protect a guest: their mirrors, and how far these are.
///
///     comparing   the shadow looks through its replicas
///     copying     QEMU's mirrors read the disks; what the replicas lack crosses the wire
///     settling    all mirrors are ready; the worker closes the first copy
///     following   every write of the guest belongs to an epoch
final class DiskSession: @unchecked Sendable {
    enum Stage { case comparing, copying, settling, following }

    let plan: DiskPlan
    /// Paths on the peer, by target.
    let replicas: [String: String]
    let mirrors: [DiskMirror]
    private let stageBox = Guarded(Stage.comparing)

    var stage: Stage { stageBox.read { $0 } }

    init(plan: DiskPlan, replicas: [String: String], domain: LocalDomain, socket: String) {
        self.plan = plan
        self.replicas = replicas
        mirrors = plan.replicas.map { DiskMirror(domain: domain, target: $0.target, socket: socket) }
    }

    /// The worker knows the replicas: the mirrors may begin.
    func start(bytesPerSecond: UInt64?) throws {
        for mirror in mirrors { try mirror.start(bytesPerSecond: bytesPerSecond) }
        stageBox.change { $0 = .copying }
    }

    func settle() { stageBox.change { $0 = .settling } }
    func follow() { stageBox.change { $0 = .following } }

    /// Whether all mirrors are ready. Throws when one has ended: what the guest writes does not reach the worker any more.
    func areReady() throws -> Bool {
        var all = true
        for mirror in mirrors {
            switch try mirror.poll() {
            case .ready: break
            case .copying: all = false
            case .none: throw ControlFailure("Disk \(mirror.target) has no copy job")
            case .ended(let reason): throw ControlFailure(reason)
            }
        }
        return all
    }

    /// Bytes that the mirrors have looked at, and of how many.
    var progress: (done: UInt64, total: UInt64) {
        status.reduce((0, 0)) { sum, disk in disk.state == .shared ? sum : (sum.0 + disk.syncedBytes, sum.1 + disk.totalBytes) }
    }

    var status: [DiskStatus] {
        let shared = plan.shared.map { DiskStatus(target: $0, state: .shared) }
        return shared + zip(plan.replicas, mirrors).map { request, mirror in
            var disk = DiskStatus(target: request.target, replica: replicas[request.target], state: .waiting, totalBytes: request.capacityBytes)
            switch mirror.current {
            case .none: break
            case .copying(let done, let total):
                disk.state = .syncing
                (disk.syncedBytes, disk.totalBytes) = (done, total)
            case .ready:
                disk.state = stage == .following ? .ready : .syncing
                disk.syncedBytes = request.capacityBytes
            case .ended: disk.state = .failed
            }
            return disk
        }
    }

    func note(_ event: BlockJobEvent) { for mirror in mirrors { mirror.note(event) } }

    /// Ends the mirrors; the guest goes on with its own disks.
    func end() {
        for mirror in mirrors {
            do { try mirror.abort() } catch { Log.warning("\(mirror.domain.name): \(error)") }
        }
    }
}
