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
    let mirrors: [DiskMirror]
    private let stageBox = Guarded(Stage.comparing)

    var stage: Stage { stageBox.read { $0 } }

    init(plan: DiskPlan, domain: LocalDomain, socket: String) {
        self.plan = plan
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
        mirrors.reduce((0, 0)) { sum, mirror in
            let (done, total) = mirror.progress
            return (sum.0 + done, sum.1 + total)
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
