import Platform

/// Work that may hang (a dead NFS, a libvirt or a peer that does not answer), on a thread of its own. Whoever asks waits for a limited time;
/// while one run hangs no other is begun, so a dead thing costs one thread, however long it stays dead.
public final class Probe<Value: Sendable>: Sendable {
    private enum State {
        case idle
        case busy(since: MonotonicTime)
        /// Nil: it found nothing.
        case done(Value?)
    }

    private let state = Guarded(State.idle)
    private let name: String
    private let meter: CPUMeter

    /// `name`: of its thread, at most 15 bytes.
    public init(_ name: String, meter: CPUMeter) {
        self.name = name
        self.meter = meter
    }

    /// Begins a run, and forgets the last one's result. False: the last one is still under way.
    @discardableResult
    public func start(_ work: @escaping @Sendable () -> Value?) -> Bool {
        let isFree = state.change { state in
            if case .busy = state { return false }
            state = .busy(since: .now)
            return true
        }
        guard isFree else { return false }
        startThread(name) { [self] in
            let value = meter.measure(work)
            state.change { $0 = .done(value) }
        }
        return true
    }

    /// A run is under way.
    public var isBusy: Bool { state.read { if case .busy = $0 { true } else { false } } }

    /// How long the run that is under way has taken so far, milliseconds; nil: none is.
    public var busyMs: Double? { state.read { if case .busy(let since) = $0 { MonotonicTime.now.milliseconds(since: since) } else { nil } } }

    /// The result of the run, handed out once; nil when there is none by the deadline.
    public func take(until deadline: MonotonicTime) -> Value? {
        // Two layers: that the wait is over, and that there is a value.
        let result: Value?? = state.wait(until: deadline) { state in
            guard case .done(let value) = state else { return nil }
            state = .idle
            return .some(value)
        }
        return result ?? nil
    }
}
