import ControlProtocol
import Libvirt
import Platform
import Replication

/// What a primary's protection reacts to, one after the other.
enum PrimaryEvent: Sendable {
    /// From the worker of that generation; an older one's last words are ignored.
    case worker(WorkerEvent, generation: Int)
    case workerEnded(String, generation: Int)
    /// QEMU's STOP and RESUME, nanoseconds on the realtime clock.
    case stopped(UInt64)
    case resumed(UInt64)
    /// Libvirt's status file tells of a user's suspend.
    case suspendNoted(SuspendWatch.Evidence)
    /// QEMU's MIGRATION status.
    case migration(String)
    case coloExit(String)
    case lifecycle(LifecycleEvent.Event)
    /// A block job of the guest is ready or over, ours or not.
    case blockJob(BlockJobEvent)
    case libvirtReconnected
    /// A job of libvirt's own on the guest begins or is over.
    case libvirtJob(Bool)
    /// To the shadow on that host; nil: the freshest.
    case swap(Reply<HandoverReport>, to: String?)
    /// Another interval was ordered.
    case interval
    case addShadows([ShadowSlot], Reply<Void>)
    case removeShadow(String, deleteReplica: Bool, Reply<[String]>)
    /// The host of a shadow that was lost answers again.
    case shadowIsBack(String)
    case unprotect(Reply<Void>)
    /// Another host takes the guest over by force: this copy must not run any more.
    case yield(Reply<Void>, to: String)
    /// The service ends.
    case shutdown(Reply<Void>)

    /// An order whose giver was told meanwhile that it was not carried out in time, and acts on that: the guest that a late `yield` destroys would run nowhere.
    var isAbandoned: Bool {
        switch self {
        case .swap(let reply, _): !reply.isOpen
        case .addShadows(_, let reply), .unprotect(let reply), .yield(let reply, _): !reply.isOpen
        case .removeShadow(_, _, let reply): !reply.isOpen
        default: false
        }
    }
}

/// An answer that somebody on another thread waits for.
final class Reply<Value: Sendable>: @unchecked Sendable {
    private let result = Guarded<Result<Value, any Error>?>(nil)

    func give(_ value: Result<Value, any Error>) { result.change { $0 = $0 ?? value } }

    /// Neither given nor given up.
    var isOpen: Bool { result.read { $0 == nil } }

    /// At the deadline it is given up: an order that nobody has begun by then is not carried out any more.
    func wait(until deadline: MonotonicTime?) throws -> Value {
        if let result = result.wait(until: deadline, { $0 }) { return try result.get() }
        give(.failure(ControlFailure("The service did not finish in time")))
        return try wait(until: nil)
    }

    /// The answer, when it is there by the deadline.
    func poll(until deadline: MonotonicTime) -> Result<Value, any Error>? { result.wait(until: deadline) { $0 } }
}
