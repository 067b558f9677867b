import Configuration
import ControlProtocol
import Foundation
import Platform

/// Watches this host's BMC: reads it at its interval, keeps the last state, tells of new events. Whatever the BMC does, nobody who asks here waits.
public final class HealthMonitor: @unchecked Sendable {
    /// Events that `health` shows.
    static let mostEvents = 100
    /// Events of one reading that the service's log shows; a storm of correctable errors has thousands.
    static let mostLogged = 20
    /// Seconds between readings of a BMC that does not answer, in the end; and from the beginning for one that refuses us: many lock an
    /// account after a few wrong passwords.
    static let longestPause = 300.0

    private struct State {
        var status: BMCStatus
        var sensors: [SensorRecord] = []
        var events: [HardwareEvent] = []
        var troubles: [String: UInt64] = [:]
        var failures = 0
        var isRefused = false
        var readings = 0
        var isStopped = false
        var handlers: [@Sendable ([HardwareEvent]) -> Void] = []
    }

    private let configuration: ServiceConfiguration
    private let reader: BMCReader
    private let state: Guarded<State>
    // The reading thread's own.
    private var tracker: LogTracker
    private var lastReading: Double?
    /// The end of the log as this process saw it; nil until it has: what was there before is shown, too.
    private var known: LogMark?

    public init(_ configuration: ServiceConfiguration, reader: BMCReader? = nil) {
        self.configuration = configuration
        self.reader = reader ?? BMCReader(configuration)
        tracker = LogTracker(folder: BMCReader.folder(configuration), bmc: configuration.bmc.name)
        state = Guarded(State(status: BMCStatus(address: configuration.bmc.name)))
    }

    /// False: none is configured; then there is nothing to start, and no event ever comes.
    public var hasBMC: Bool { configuration.bmc.access != nil }

    /// Begins to read, now and at the interval.
    public func start() {
        guard hasBMC else { return }
        startThread("bmc") { [self] in
            while !state.read({ $0.isStopped }) {
                readNow()
                let next = MonotonicTime.now.adding(milliseconds: pause * 1000)
                _ = state.wait(until: next) { $0.isStopped ? true : nil }
            }
        }
    }

    /// No reading begins any more; one that is under way ends by itself.
    public func stop() { state.change { $0.isStopped = true } }

    /// Calls `handler` with the new events of each reading, in their order, on the reading thread: it must not wait.
    public func onEvents(_ handler: @escaping @Sendable ([HardwareEvent]) -> Void) { state.change { $0.handlers.append(handler) } }

    /// The last state, at once.
    public var report: HealthReport {
        let now = Date().timeIntervalSince1970
        var report = HealthReport(host: configuration.hostName, time: EventMaker.timestamp(now))
        guard hasBMC else { return report }
        let state = state.read { $0 }
        report.bmc = state.status
        report.sensors = state.sensors.map(\.reading)
        report.events = state.events
        report.troubles = state.troubles
        (report.state, report.reasons) = Assessment.judge(sensors: report.sensors, events: report.events, now: now)
        // What it said last is no news of a BMC that is silent now, unless it was bad.
        if !state.status.isReachable, report.state == .nominal { report.state = .unknown }
        if !state.status.isReachable, let problem = state.status.problem { report.reasons.append(problem.message) }
        return report
    }

    /// Waits until that many readings have ended, whatever came of them; false when the deadline passes before.
    public func wait(readings: Int, until deadline: MonotonicTime) -> Bool {
        state.wait(until: deadline) { $0.readings >= readings ? true : nil } ?? false
    }

    /// Seconds from the end of a reading to the next.
    var pause: Double {
        let interval = Double(configuration.bmc.interval)
        let (failures, isRefused) = state.read { ($0.failures, $0.isRefused) }
        guard failures > 0 else { return interval }
        let longest = max(interval, Self.longestPause)
        return isRefused ? longest : min(longest, interval * Double(1 << min(failures, 10)))
    }

    /// One reading, and what follows from it. By one thread at a time.
    func readNow() {
        let began = MonotonicTime.now
        do throws(BMCFailure) {
            let reply = try reader.read(known: known)
            succeeded(reply, milliseconds: MonotonicTime.now.milliseconds(since: began))
        } catch {
            failed(error)
        }
        state.change { $0.readings += 1 }
    }

    private func succeeded(_ reply: BMCReply, milliseconds: Double) {
        let now = Date().timeIntervalSince1970
        let maker = EventMaker(host: configuration.hostName, before: lastReading, now: now)
        // Within this process what is known may be more than the disk has taken.
        let new = reply.log.map { LogTracker.new(in: $0, after: known ?? tracker.mark) } ?? []
        let old = known == nil ? (reply.log ?? []).dropLast(new.count).suffix(Self.mostEvents).compactMap { maker.event(old: $0) } : []
        let sensorsBefore = lastReading == nil ? [] : state.read { $0.sensors }
        let fresh = new.map { maker.event(new: $0) } + maker.changes(from: sensorsBefore, to: reply.sensors, logged: new)

        let handlers = state.change { state in
            state.sensors = reply.sensors
            state.events = (state.events + old + fresh).suffix(Self.mostEvents)
            for event in fresh where event.isTrouble { state.troubles[event.kind.rawValue, default: 0] += 1 }
            state.status.lastReading = EventMaker.timestamp(now)
            state.status.readingMs = (milliseconds * 10).rounded() / 10
            (state.failures, state.isRefused) = (0, false)
            return state.handlers
        }
        setReachable(true, reply.logFailure?.ofLog)
        if reply.olderRecords > 0, new.count == reply.log?.count, known != nil || tracker.mark != nil {
            Log.warning("The BMC has logged more than \(BMCWorker.mostRecords) events since the last reading: the first \(reply.olderRecords) are not looked at")
        }
        tell(fresh)
        if !fresh.isEmpty { handlers.forEach { $0(fresh) } }
        if let log = reply.log {
            tracker.advance(to: log)
            known = LogMark(last: log.last)
        }
        lastReading = now
    }

    private func failed(_ failure: BMCFailure) {
        state.change { state in
            state.failures += 1
            state.isRefused = failure.kind == .refused
        }
        setReachable(false, failure.failure)
    }

    /// Keeps and logs how the BMC is; a repetition is neither.
    private func setReachable(_ isReachable: Bool, _ problem: ControlFailure?) {
        let before = state.change { state -> BMCStatus? in
            let before = state.status
            guard before.isReachable != isReachable || before.problem != problem || before.since == nil else { return nil }
            if before.isReachable != isReachable || before.since == nil { state.status.since = Timestamp.now }
            state.status.isReachable = isReachable
            state.status.problem = problem
            return before
        }
        guard let before else { return }
        if let problem {
            Log.warning("BMC: \(problem)")
        } else if before.since == nil || !before.isReachable || before.problem != nil {
            Log.info("BMC \(configuration.bmc.name): \(state.read { $0.sensors.count }) sensors")
        }
    }

    private func tell(_ events: [HardwareEvent]) {
        for event in events.prefix(Self.mostLogged) {
            let text = "BMC: \(event.sensor): \(event.text)\(event.isAsserted ? "" : " is over") (\(event.kind.rawValue), \(event.severity.rawValue))"
            switch event.severity {
            case .critical where event.isAsserted: Log.error(text)
            case .warning where event.isAsserted: Log.warning(text)
            default: Log.info(text)
            }
        }
        if events.count > Self.mostLogged { Log.warning("BMC: \(events.count - Self.mostLogged) more events; `shadow-virt health` shows the last ones") }
    }
}
