import Configuration
import ControlProtocol

/// Which of several hosts a shadow goes to, from facts alone.
///
/// A host is out when something speaks against it for certain, or when it breaks a required rule. Of the others the best is the one that fulfils most
/// rules; then the one with more free memory (in whole GiB: less is noise), the cheaper one, the first by name.
enum PlacementRanking {
    /// What is known of one host.
    struct Facts {
        var host: String
        var labels: HostLabels?
        var freeBytes: UInt64?
        var reservedBytes: UInt64?
        /// Why the shadow cannot go there, whatever the rules say.
        var failures: [String] = []
        var remarks: [String] = []
    }

    /// Best first, excluded ones last; at most one is chosen.
    static func rank(_ hosts: [Facts], home: String, homeLabels: HostLabels, policy: DomainPolicy) -> [PlacementReport.Candidate] {
        var candidates = hosts.map { judge($0, home: home, homeLabels, policy) }
        candidates.sort { isBetter($0, $1) }
        if candidates.first?.verdict == .fits { candidates[0].verdict = .chosen }
        return candidates
    }

    private static func judge(_ facts: Facts, home: String, _ homeLabels: HostLabels, _ policy: DomainPolicy) -> PlacementReport.Candidate {
        var failures = facts.failures
        var remarks = facts.remarks
        var score = 0
        if !policy.hosts.isEmpty, !policy.hosts.contains(where: { HostName.isSame($0, facts.host) }) {
            failures.append("The policy allows \(policy.hosts.joined(separator: ", ")) only")
        }
        if let labels = facts.labels {
            for rule in policy.effectiveRules {
                let objection = objection(rule, home: home, homeLabels, host: facts.host, labels)
                if objection == nil { score += 1 } else if rule.level == .required, let objection { failures.append(objection) } else if let objection, policy.rules.contains(rule) { remarks.append(objection) }
            }
        }
        let differs = HostLabel.allCases.filter { label in
            guard let here = homeLabels[label], let there = facts.labels?[label] else { return false }
            return here != there
        }
        return .init(host: facts.host, verdict: failures.isEmpty ? .fits : .excluded, score: score, differs: differs.map(\.rawValue), labels: facts.labels,
                     freeBytes: facts.freeBytes, reservedBytes: facts.reservedBytes, reasons: failures + remarks)
    }

    /// Why a host does not fulfil a rule; nil when it does. A label that is not set fulfils none.
    private static func objection(_ rule: DomainPolicy.Rule, home: String, _ here: HostLabels, host: String, _ there: HostLabels) -> String? {
        let name = rule.label.rawValue
        guard let mine = here[rule.label] else { return "\(home) has no label \(name)" }
        guard let theirs = there[rule.label] else { return "\(host) has no label \(name)" }
        switch rule.relation {
        case .differ: return mine == theirs ? "Same \(name) as \(home) (\(mine))" : nil
        case .same: return mine == theirs ? nil : "Another \(name) than \(home) (\(theirs), not \(mine))"
        }
    }

    private static func isBetter(_ a: PlacementReport.Candidate, _ b: PlacementReport.Candidate) -> Bool {
        if (a.verdict == .excluded) != (b.verdict == .excluded) { return b.verdict == .excluded }
        if a.verdict == .excluded { return a.host < b.host }
        if a.score != b.score { return a.score > b.score }
        let (mine, theirs) = ((a.freeBytes ?? 0) >> 30, (b.freeBytes ?? 0) >> 30)
        if mine != theirs { return mine > theirs }
        let (cost, other) = (a.labels?.cost ?? 0, b.labels?.cost ?? 0)
        return cost == other ? a.host < b.host : cost < other
    }
}
