import ControlProtocol
import Foundation
import Platform
import Telemetry

extension Registry {
    /// What this host measures; nil before it is begun, and with `telemetry_interval = 0`.
    public var telemetry: TelemetryKeeper? { telemetryBox.read { $0 } }

    /// Begins to measure, unless the configuration says otherwise.
    public func startTelemetry() {
        guard environment.configuration.telemetryInterval > 0 else { return }
        let keeper = TelemetryKeeper(self)
        telemetryBox.change { $0 = keeper }
        keeper.start()
    }

    /// How telemetry may look at a domain now: never at one that changes hosts, or that waits as a shadow.
    func telemetryAccess(_ uuid: String) -> DomainAccess {
        if migrations.read({ $0[uuid] != nil }) { return .none }
        if let shadow = shadow(uuid), shadow.phase != .running { return .none }
        guard let state = primary(uuid)?.board.state else { return .free }
        return switch state {
        case .swapping, .inDoubt, .failedOver: .none
        case .syncing, .protected, .degraded, .suspended: .protected
        }
    }

    /// Samples of a domain (name, id or UUID), or of this host, from a moment on; as many as fit on one line.
    public func kpis(of word: String?, since: UInt64) throws -> KPIPage {
        let configuration = environment.configuration
        let store = TelemetryKeeper.store(configuration)
        var page = KPIPage(host: configuration.hostName, intervalSeconds: configuration.telemetryInterval)
        if let word {
            guard let uuid = kpiSubject(word, store) else {
                throw ControlFailure("There are no KPIs of a domain \(word) on \(configuration.hostName)",
                                     advice: configuration.telemetryInterval == 0
                                        ? "telemetry_interval is 0 in \(configuration.file): nothing is measured"
                                        : "They are kept where the domain runs and where its shadow is; `shadow-virt kpi --host` shows this host's")
            }
            page.uuid = uuid
        }
        let rows = try store.rows(of: page.uuid ?? SeriesStore.host, since: since, mostValues: Self.mostValuesOfPage)
        if page.uuid != nil { page.domain = rows.label.isEmpty ? word : rows.label }
        page.columns = rows.columns
        page.times = rows.rows.map(\.time)
        // By way of the decimal digits: the nearest Double of 0.1 in single precision is 0.10000000149011612.
        page.rows = rows.rows.map { row in row.values.map { $0.flatMap { Double($0.description) } } }
        page.hasMore = rows.isCut
        return page
    }

    /// At some 12 bytes each they stay below a line's ceiling of 4 MiB.
    private static let mostValuesOfPage = 200_000

    private func kpiSubject(_ word: String, _ store: SeriesStore) -> String? {
        if UUID(uuidString: word) != nil, store.has(word.lowercased()) { return word.lowercased() }
        // A name may have been another domain's before: the one that has it now comes first.
        if let uuid = telemetry?.uuid(named: word), store.has(uuid) { return uuid }
        if let known = store.subject(labelled: word) { return known }
        // By its number.
        guard Int32(word) != nil, let uuid = try? lookup(word).uuid, store.has(uuid) else { return nil }
        return uuid
    }
}
