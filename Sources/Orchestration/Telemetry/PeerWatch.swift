import Configuration
import Foundation
import Platform
import Telemetry

/// Asks the peers of this host's protections what they measured, each on a thread of its own: one that is dead holds nobody up, and
/// its values are absent.
final class PeerWatch {
    struct Reading: Sendable {
        /// Of one small request and its answer over the control connection.
        var roundTripMs: Double
        var telemetry: PeerTelemetry?
    }

    private static let limitMs = 2000.0

    private let environment: HostEnvironment
    private let meter: CPUMeter
    private var watched: [String: (client: PeerClient, probe: Probe<Reading>)] = [:]

    init(environment: HostEnvironment, meter: CPUMeter) {
        self.environment = environment
        self.meter = meter
    }

    /// Begins to ask: `peers` for the round trip, those in `withValues` for what they measured as well.
    func start(_ peers: Set<String>, withValues: Set<String>, _ outbox: MirrorOutbox) {
        watched = watched.filter { peers.contains($0.key) || $0.value.probe.isBusy }
        for name in peers {
            guard let entry = watched[name] ?? fresh(name) else { continue }
            watched[name] = entry
            let wantsValues = withValues.contains(name), host = environment.hostName
            entry.probe.start { Self.ask(entry.client, host: host, wantsValues: wantsValues, outbox) }
        }
    }

    /// What they answered by the deadline.
    func take(until deadline: MonotonicTime) -> [String: Reading] {
        watched.compactMapValues { $0.probe.take(until: deadline) }
    }

    private func fresh(_ name: String) -> (client: PeerClient, probe: Probe<Reading>)? {
        guard let peer = environment.configuration.peer(named: name) else { return nil }
        return (environment.client(of: peer), Probe("tele-peer", meter: meter))
    }

    private static func ask(_ client: PeerClient, host: String, wantsValues: Bool, _ outbox: MirrorOutbox) -> Reading? {
        do {
            var ping = PeerRequest(.telemetry, host: host)
            ping.isPing = true
            let begin = MonotonicTime.now
            _ = try client.ask(ping, timeoutMs: limitMs)
            let reading = Reading(roundTripMs: MonotonicTime.now.milliseconds(since: begin))
            guard wantsValues else { return reading }
            var request = PeerRequest(.telemetry, host: host)
            request.rows = outbox.rows(for: client.name, now: .now)
            return Reading(roundTripMs: reading.roundTripMs, telemetry: try client.ask(request, timeoutMs: limitMs).telemetry)
        } catch {
            Log.debug("Telemetry of \(client.name): \(error)")
            return nil
        }
    }
}
