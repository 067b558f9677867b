import Configuration
import ControlProtocol
import Libvirt
import Platform

/// Asks every peer at once whether a domain's shadow could live there, and ranks the answers.
struct Placement {
    let environment: HostEnvironment
    /// One host that hangs must not keep a guest waiting for its shadow.
    private static let limitMs = 5000.0
    private static let mostAtOnce = 32

    /// - Parameter excluded: hosts that are out from the beginning, and why.
    func report(_ domain: Domain, policy: DomainPolicy, _ request: ProtectRequest, excluded: [String: String] = [:]) throws -> PlacementReport {
        let excluded = excluded.merging(environment.marks.exclusions) { mine, _ in mine }
        let definition = try DomainDefinition(xml: domain.xml(flags: [.secure]))
        let plan = try request.withoutDisks || !domain.isActive() ? nil : DiskPlan.make(domain, definition, ownFolders: environment.ownFolders)
        let needs = try definition.needs { try environment.connect().capabilitiesXML() }
        let peers = environment.configuration.peers
        let facts = ask(peers.filter { peer in
            excluded[peer.name] == nil && (policy.hosts.isEmpty || policy.hosts.contains { HostName.isSame($0, peer.name) })
        }, definition, plan, needs, request)
        let all = peers.map { peer -> PlacementRanking.Facts in
            if let known = facts[peer.name] { return known }
            // Who is not on the policy's list is not asked; the ranking says so.
            return PlacementRanking.Facts(host: peer.name, failures: excluded[peer.name].map { [$0] } ?? [])
        }
        let labels = environment.configuration.labels
        return PlacementReport(domain: domain.name, host: environment.hostName, labels: labels, rules: policy.effectiveRules,
                               candidates: PlacementRanking.rank(all, home: environment.hostName, homeLabels: labels, policy: policy))
    }

    /// The host that suits best. Throws what speaks against each when none does.
    func choose(_ domain: Domain, policy: DomainPolicy, _ request: ProtectRequest, excluded: [String: String] = [:]) throws -> String {
        let report = try report(domain, policy: policy, request, excluded: excluded)
        guard let chosen = report.chosen else { throw Self.nowhere(report, in: environment.configuration.file) }
        return chosen.host
    }

    /// The same for up to `count` shadows, best first.
    func choose(_ count: Int, _ domain: Domain, policy: DomainPolicy, _ request: ProtectRequest, excluded: [String: String] = [:]) throws -> [String] {
        let report = try report(domain, policy: policy, request, excluded: excluded)
        let fitting = report.candidates.filter { $0.verdict != .excluded }
        guard !fitting.isEmpty else { throw Self.nowhere(report, in: environment.configuration.file) }
        return fitting.prefix(max(1, count)).map(\.host)
    }

    static func nowhere(_ report: PlacementReport, in file: String) -> ControlFailure {
        guard !report.candidates.isEmpty else { return ControlFailure("There is no other host for a shadow of \(report.domain)", advice: "List the other hosts under `peers` in \(file)") }
        let reasons = report.candidates.map { "\($0.host): \($0.reasons.first ?? "unknown")" }
        return ControlFailure("No host can hold a shadow of \(report.domain): \(reasons.joined(separator: "; "))", advice: "`shadow-virt placement \(report.domain) --explain` shows each host")
    }

    private func ask(_ peers: [Peer], _ definition: DomainDefinition, _ plan: DiskPlan?, _ needs: DefinitionNeeds, _ request: ProtectRequest) -> [String: PlacementRanking.Facts] {
        let question = Question(plan: plan, needs: needs, request: request, xml: definition.xml)
        var all: [String: PlacementRanking.Facts] = [:]
        var rest = peers[...]
        while !rest.isEmpty {
            let batch = Array(rest.prefix(Self.mostAtOnce))
            rest = rest.dropFirst(batch.count)
            let answers = Guarded<[String: PlacementRanking.Facts]>([:])
            for peer in batch {
                startThread("placement") { [self] in
                    let facts = examine(peer, question)
                    answers.change { $0[peer.name] = facts }
                }
            }
            // A little longer than each question may take.
            _ = answers.wait(until: MonotonicTime.now.adding(milliseconds: Self.limitMs + 1000)) { $0.count == batch.count ? true : nil }
            for peer in batch {
                all[peer.name] = answers.read { $0[peer.name] } ?? PlacementRanking.Facts(host: peer.name, failures: ["No answer within \(Int(Self.limitMs / 1000)) s"])
            }
        }
        return all
    }

    /// What every peer is asked.
    private struct Question: Sendable {
        var plan: DiskPlan?
        var needs: DefinitionNeeds
        var request: ProtectRequest
        /// Parsed anew by each thread: the tree is not to be shared.
        var xml: String
    }

    private func examine(_ peer: Peer, _ question: Question) -> PlacementRanking.Facts {
        guard let definition = try? DomainDefinition(xml: question.xml) else { return .init(host: peer.name, failures: ["The domain's XML cannot be parsed"]) }
        let (findings, facts) = Doctor(environment: environment).examine(peer, definition, question.plan, question.request, needs: question.needs, timeoutMs: Self.limitMs)
        var result = PlacementRanking.Facts(host: peer.name, failures: findings.filter { $0.verdict == .failed }.map(\.detail))
        guard let facts else { return result }
        result.freeBytes = facts.freeMemoryBytes
        guard let placement = facts.placement else {
            result.failures.append("shadow-virt on \(peer.name) knows nothing of placement: install the same release on both")
            return result
        }
        result.labels = placement.labels
        result.reservedBytes = placement.reservedBytes
        if placement.isDraining { result.failures.insert("It is being drained (`shadow-virt undrain` there ends that)", at: 0) }
        if let suspicion = placement.suspicion { result.failures.insert(suspicion, at: 0) }
        return result
    }
}
