import ControlProtocol
import Platform

extension Registry {
    /// Takes a call of libvirt's hook and returns at once: libvirt's daemon stands still for as long as its hook runs.
    public func hookCalled(_ call: HookCall) { hooks.add(call) }
}

/// Calls of libvirt's hook in their order, handed one by one to whoever acts on them, on a thread of the queue's own.
public final class HookQueue: @unchecked Sendable {
    public typealias Handler = @Sendable (HookCall) -> Void

    /// Calls and bytes of XML that may wait. A host that starts 100 guests makes 300 calls; beyond that the oldest give way:
    /// libvirt's events tell the same.
    static let mostCalls = 512, mostBytes = 32 << 20

    private struct Waiting {
        var calls: [HookCall] = []
        var bytes = 0
        var isServed = false
    }

    private let waiting = Guarded(Waiting())
    private let handler: Guarded<Handler>

    /// Until somebody wants the calls they only go to the log.
    public init(handler: @escaping Handler = { _ in }) { self.handler = Guarded(handler) }

    /// Who gets the calls from now on. It may take its time: only other calls wait for it.
    public func onHook(_ handler: @escaping Handler) { self.handler.change { $0 = handler } }

    func add(_ call: HookCall) {
        let (begins, lost) = waiting.change { waiting in
            waiting.calls.append(call)
            waiting.bytes += Self.size(call)
            var lost = 0
            while waiting.calls.count > Self.mostCalls || (waiting.bytes > Self.mostBytes && waiting.calls.count > 1) {
                waiting.bytes -= Self.size(waiting.calls.removeFirst())
                lost += 1
            }
            defer { waiting.isServed = true }
            return (!waiting.isServed, lost)
        }
        if lost > 0 { Log.warning("\(lost) call(s) of libvirt's hook were dropped: more than \(Self.mostCalls) wait") }
        if begins { startThread("hooks") { [self] in serve() } }
    }

    /// Ends when nothing is left; the next call begins anew.
    private func serve() {
        while let call = next() {
            Log.debug("libvirt's hook: \(call.summary)")
            handler.read({ $0 })(call)
        }
    }

    private func next() -> HookCall? {
        waiting.change { waiting in
            guard !waiting.calls.isEmpty else {
                waiting.isServed = false
                return nil
            }
            let call = waiting.calls.removeFirst()
            waiting.bytes -= Self.size(call)
            return call
        }
    }

    private static func size(_ call: HookCall) -> Int { (call.xml?.utf8.count ?? 0) + 256 }
}
