import ControlProtocol
import Foundation
import Platform

struct PolicyCommand: Command {
    let spec = CommandSpec(
        name: "policy", summary: "what a domain asks of shadow-virt wherever it runs",
        operands: [.init(name: "DOMAIN"), .init(name: "get|set|clear")],
        options: [
            .init("file", value: "FILE", help: "set: the whole policy from FILE, '-' for stdin, as `policy DOMAIN get` prints it. Without it the options below change what there is."),
            .init("on", help: "set: the service acts on it. The default."),
            .init("off", help: "set: it stays written, and the service ends the protection."),
            .init("lifetime", value: "permanent|ghost", help: "set: 'ghost': when the guest ends, nothing is left of its protection on either side."),
            .init("engine", value: "ENGINE", help: "set: auto, continuous or periodic, as in `protect`."),
            .init("interval", value: "TIME", help: "set: time between two epochs, as in `protect`; 'default': what the configuration has."),
            .init("shadows", value: "N", help: "set: how many shadows to keep."),
            .init("hosts", value: "LIST", help: "set: where the guest and its shadows may be: b,c. 'any': on all hosts."),
            .init("require", value: "LIST", help: "set: labels in which the shadow's host has to differ from the guest's: rack,power,network,zone; 'none'."),
            .init("prefer", value: "LIST", help: "set: labels in which it should differ. rack, power and network unless another rule speaks of them."),
            .init("same", value: "LIST", help: "set: labels that both hosts have to share: zone; 'none'."),
            .init("without-disks", help: "set: RAM and device state only."),
            .init("with-disks", help: "set: the disks as well. The default."),
            .init("pool", value: "NAME", help: "set: the storage pool for all replicas; 'default': for each disk the pool of the same name."),
            .init("disk-rate", value: "BYTES/s", help: "set: limit of the disks' first copy; 'none'."),
            .init("critical-disks", value: "LIST", help: "set: disks without which there is to be no protection: vda,vdb; 'none'."),
            .init("on-failure", value: "restart|none", help: "set: as in `protect`."),
            .init("on-drift", value: "notify|swap", help: "set: what drift beyond a threshold leads to."),
            .init("thresholds", value: "LIST", help: "set: limits of drift: NAME=NUMBER,NAME=NUMBER; 'none'."),
        ] + CommandSpec.Option.client,
        description: [
            "A policy stands in the metadata of DOMAIN (name, id or UUID), so it goes wherever the domain goes. The service of the host where the domain runs "
                + "sees to it: the domain gets its shadow when it starts, on the host that placement finds, and again after a hand-over. `protect` writes one, "
                + "`unprotect` turns it off.",
            "get prints it as XML, or with --format json. set changes it, or with --file replaces it. clear removes it; a protection that has begun goes on.",
        ],
        examples: [
            .init("shadow-virt policy web1 set --require rack --interval 50ms", "A shadow in another rack whenever web1 runs"),
            .init("shadow-virt policy web1 get > web1.xml", "Keep it"),
            .init("shadow-virt policy web2 set --file web1.xml", "The same for another domain"),
        ])

    func run(_ arguments: ParsedArguments, _ context: CommandContext) throws -> Int32 {
        let domain = arguments.operands[0]
        guard let action = PolicyRequest.Action(rawValue: arguments.operands[1]) else {
            let isTurnedRound = PolicyRequest.Action(rawValue: domain) != nil
            throw misuse(isTurnedRound ? "The domain comes first: policy \(arguments.operands[1]) \(domain)" : "Unknown action '\(arguments.operands[1])': use get, set or clear")
        }
        let given = PolicyOptions.names.filter { arguments.has($0) || arguments.value($0) != nil }
        if action != .set, let stray = given.first ?? (arguments.value("file") == nil ? nil : "file") { throw misuse("Option '--\(stray)' is for set") }
        if arguments.value("file") != nil, let stray = given.first { throw misuse("Options '--file' and '--\(stray)' exclude each other") }
        var request = PolicyRequest(action)
        if action == .set {
            if let path = arguments.value("file") {
                request.xml = try read(path)
            } else {
                guard !given.isEmpty else { throw misuse("Nothing to set: give an option, or --file") }
                var policy = try ask(PolicyRequest(.get), domain, arguments, context).policy ?? DomainPolicy()
                try PolicyOptions(arguments: arguments, command: spec.name).apply(to: &policy)
                if let problem = policy.problem { throw misuse(problem.description) }
                request.policy = policy
            }
        }
        let report = try ask(request, domain, arguments, context)
        if action == .get, report.policy == nil, try context.format(arguments, command: spec.name) == .table {
            context.remark("Domain \(report.domain) has no policy", arguments)
        } else if try action == .get || context.format(arguments, command: spec.name) == .json {
            try context.print(.policy(report), arguments, command: spec.name)
        } else {
            try context.printDone(action == .set ? "The policy of \(report.domain) is set" : "Domain \(report.domain) has no policy any more", arguments, command: spec.name)
        }
        return ExitCode.ok
    }

    private func ask(_ request: PolicyRequest, _ domain: String, _ arguments: ParsedArguments, _ context: CommandContext) throws -> PolicyReport {
        var message = ControlRequest(.policy, domain: domain)
        message.policy = request
        guard let report = try context.ask(message, arguments, command: spec.name, notice: "").policy else { throw context.unexpected(spec.name) }
        return report
    }

    /// A policy is a screenful; what is larger is the wrong file.
    private static let ceilingBytes = 64 << 10

    private func read(_ path: String) throws -> String {
        guard let handle = path == "-" ? FileHandle.standardInput : FileHandle(forReadingAtPath: path) else { throw ControlFailure("Cannot read \(path)", advice: "Check the path after --file") }
        let data = try handle.read(upToCount: Self.ceilingBytes + 1) ?? Data()
        guard data.count <= Self.ceilingBytes else { throw ControlFailure("\(path) has more than \(Self.ceilingBytes) bytes", advice: "`policy DOMAIN get` prints what is expected here") }
        guard let text = String(data: data, encoding: .utf8), !text.isEmpty else { throw ControlFailure("\(path) is \(data.isEmpty ? "empty" : "no UTF-8 text")", advice: "`policy DOMAIN get` prints what is expected here") }
        return text
    }
}

/// The options of `policy set`, applied to what there is.
struct PolicyOptions {
    static let names = ["on", "off", "lifetime", "engine", "interval", "shadows", "hosts", "require", "prefer", "same", "without-disks", "with-disks", "pool", "disk-rate",
                        "critical-disks", "on-failure", "on-drift", "thresholds"]
    let arguments: ParsedArguments
    let command: String

    private func misuse(_ option: String, _ message: String) -> UsageError { UsageError(message: "Option '--\(option)': \(message)", command: command) }

    func apply(to policy: inout DomainPolicy) throws {
        for (one, other) in [("on", "off"), ("without-disks", "with-disks")] where arguments.has(one) && arguments.has(other) {
            throw UsageError(message: "Options '--\(one)' and '--\(other)' exclude each other", command: command)
        }
        policy.isEnabled = !arguments.has("off")
        policy.lifetime = try choice("lifetime") ?? policy.lifetime
        policy.engine = try choice("engine") ?? policy.engine
        policy.onFailure = try choice("on-failure") ?? policy.onFailure
        policy.onDrift = try choice("on-drift") ?? policy.onDrift
        if let text = arguments.value("shadows") {
            guard let count = Int(text) else { throw misuse("shadows", "'\(text)' is no number") }
            policy.shadows = count
        }
        if let text = arguments.value("interval") {
            do { policy.intervalMs = text == "default" ? nil : try Interval.parse(text) } catch { throw misuse("interval", "\(error)") }
        }
        if let list = list("hosts", none: "any") { policy.hosts = list }
        try applyRules(&policy)
        if arguments.has("without-disks") { policy.withoutDisks = true }
        if arguments.has("with-disks") { policy.withoutDisks = false }
        if let text = arguments.value("pool") { policy.pool = text == "default" ? nil : text }
        if let text = arguments.value("disk-rate") {
            do { policy.diskRateBytesPerSecond = text == "none" ? nil : try DataRate.parse(text) } catch { throw misuse("disk-rate", "\(error)") }
        }
        if let list = list("critical-disks", none: "none") { policy.criticalDisks = list }
        if let list = list("thresholds", none: "none") { policy.thresholds = try thresholds(list) }
    }

    /// Each option replaces the rules of its kind, and takes its labels over from the others.
    private func applyRules(_ policy: inout DomainPolicy) throws {
        let kinds: [(option: String, relation: DomainPolicy.Rule.Relation, level: DomainPolicy.Rule.Level)] =
            [("require", .differ, .required), ("prefer", .differ, .preferred), ("same", .same, .required)]
        for kind in kinds {
            guard let words = list(kind.option, none: "none") else { continue }
            let labels = try words.map { word in
                guard let label = HostLabel(rawValue: word) else { throw misuse(kind.option, "'\(word)' is none of \(HostLabel.allCases.map(\.rawValue).joined(separator: ", "))") }
                return label
            }
            policy.rules.removeAll { ($0.relation == kind.relation && $0.level == kind.level) || labels.contains($0.label) }
            policy.rules += labels.map { DomainPolicy.Rule(kind.relation, $0, kind.level) }
        }
    }

    private func thresholds(_ words: [String]) throws -> [String: Double] {
        var all: [String: Double] = [:]
        for word in words {
            let parts = word.split(separator: "=", maxSplits: 1).map(String.init)
            guard parts.count == 2, let value = Double(parts[1]) else { throw misuse("thresholds", "'\(word)' is not NAME=NUMBER") }
            guard all.updateValue(value, forKey: parts[0]) == nil else { throw misuse("thresholds", "'\(parts[0])' is given twice") }
        }
        return all
    }

    private func list(_ option: String, none: String) -> [String]? {
        arguments.value(option).map { $0 == none ? [] : $0.split(separator: ",", omittingEmptySubsequences: false).map(String.init) }
    }

    private func choice<T: RawRepresentable & CaseIterable>(_ option: String) throws -> T? where T.RawValue == String {
        guard let text = arguments.value(option) else { return nil }
        guard let value = T(rawValue: text) else { throw misuse(option, "'\(text)' is none of \(T.allCases.map(\.rawValue).joined(separator: ", "))") }
        return value
    }
}
