import ControlProtocol
import Foundation
import Platform

extension Registry {
    /// What watches this host's domains drift; nil while nothing is measured.
    public var drift: DriftKeeper? { driftBox.read { $0 } }

    /// Begins to watch, once telemetry was begun; without telemetry there is nothing to watch.
    public func startDrift(health: @escaping @Sendable () -> HealthReport?) {
        guard let telemetry else { return }
        let keeper = DriftKeeper(self, health: health)
        driftBox.change { $0 = keeper }
        keeper.start(telemetry)
    }

    func addingDrift(_ status: DomainStatus) -> DomainStatus {
        guard status.role == .primary, let keeper = drift else { return status }
        var status = status
        status.driftScore = keeper.watches.read { $0[DriftKeeper.Key(uuid: status.uuid, peer: status.peer)]?.score }.map { ($0 * 1000).rounded() / 1000 }
        return status
    }

    /// How one domain (name, id or UUID) drifts, or all that are protected here.
    public func driftReport(of word: String?) throws -> DriftReport {
        guard let keeper = drift else {
            throw ControlFailure("Drift is not watched on \(environment.hostName): telemetry_interval is 0 in \(environment.configuration.file)",
                                 advice: "Set it and restart the service")
        }
        let statuses = try status(of: word).filter { $0.role == .primary && $0.state != .failedOver }
        if let word, statuses.isEmpty {
            throw ControlFailure("\(environment.hostName) does not protect \(word) as its primary's host", advice: "Run the command where the guest runs")
        }
        let watches = keeper.watches.read { $0 }
        let domains = statuses.compactMap { status in
            watches[DriftKeeper.Key(uuid: status.uuid, peer: status.peer)]
                .map { $0.report(onDrift: keeper.onDrift(status.uuid).rawValue, intervalMs: status.intervalMs, intervalReason: status.intervalReason ?? "as configured") }
        }
        if let word, domains.isEmpty {
            throw ControlFailure("Nothing was measured of \(word) yet", advice: "Ask again in \(environment.configuration.telemetryInterval) s")
        }
        return DriftReport(host: environment.hostName, time: Timestamp.now, domains: domains)
    }
}
