import Foundation
import Libvirt
import Platform

/// Asks the guests' agents, a few at a time, over a libvirt connection of its own: libvirt works on five requests of one connection at once and with a
/// limited number of threads for all of them, and agents that hang would hold those up for whoever hands a guest over.
///
/// Of one thread; the agents are asked on others.
final class AgentRounds {
    private static let lanesAtOnce = 3
    /// A lane takes no further guest after that; who is left comes first in the next round.
    private static let laneMs = 5000.0

    private struct Lane {
        let probe: Probe<[String: [String: Double]]>
        var guests: Set<String> = []
    }

    private let libvirt: ReconnectingConnection
    private let mayExecute: Bool
    private let access: @Sendable (String) -> DomainAccess
    private var agents: [String: GuestAgent] = [:]
    private var lanes: [Lane]

    init(libvirtURI: String, meter: CPUMeter, mayExecute: Bool, access: @escaping @Sendable (String) -> DomainAccess) {
        libvirt = ReconnectingConnection(libvirtURI)
        self.mayExecute = mayExecute
        self.access = access
        lanes = (0..<Self.lanesAtOnce).map { _ in Lane(probe: Probe("tele-agents", meter: meter)) }
        libvirt.start()
    }

    func stop() { libvirt.stop() }

    /// What the agents have told since the last call, by UUID; then those that are due are asked. `guests`: names of the running ones by UUID.
    func round(_ guests: [String: String], _ now: MonotonicTime) -> [String: [String: Double]] {
        var found: [String: [String: Double]] = [:]
        for place in lanes.indices {
            found.merge(lanes[place].probe.take(until: now) ?? [:]) { _, new in new }
            if !lanes[place].probe.isBusy { lanes[place].guests = [] }
        }
        let busy = lanes.reduce(into: Set<String>()) { $0.formUnion($1.guests) }
        agents = agents.filter { guests[$0.key] != nil || busy.contains($0.key) }
        for (uuid, name) in guests where agents[uuid] == nil { agents[uuid] = GuestAgent(name: name, mayExecute: mayExecute) }
        let due = agents.filter { !busy.contains($0.key) && $0.value.isDue(now) && access($0.key) != .none }.sorted { $0.value.dueSince < $1.value.dueSince }
        if let connection = libvirt.current { begin(due.map { ($0.key, $0.value) }, connection) }
        return found
    }

    private func begin(_ due: [(uuid: String, agent: GuestAgent)], _ connection: Connection) {
        let free = lanes.indices.filter { !lanes[$0].probe.isBusy }
        for (place, lane) in free.enumerated() {
            let share = due.enumerated().filter { $0.offset % free.count == place }.map(\.element)
            guard !share.isEmpty else { return }
            lanes[lane].guests = Set(share.map(\.uuid))
            let access = access
            lanes[lane].probe.start {
                let end = MonotonicTime.now.adding(milliseconds: Self.laneMs)
                var found: [String: [String: Double]] = [:]
                for (uuid, agent) in share where MonotonicTime.now < end {
                    guard let domain = try? connection.lookup(uuid: uuid) else { continue }
                    found[uuid] = agent.look(domain) { access(uuid) != .none }
                }
                return found
            }
        }
    }
}
