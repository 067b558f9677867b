import ControlProtocol
import Foundation
import FoundationXML

/// A policy as XML. Anything else in it is an error that names it: a typo must not end as a guest without a shadow.
///
///     <policy enabled='yes|no' shadows='1' lifetime='permanent|ghost'>          each element at most once, all may be left out
///       <engine name='auto|continuous|periodic' interval='20ms'/>
///       <placement>
///         <host name='b'/>                                                       any number: where guest and shadows may be
///         <differ in='rack|power|network|zone' level='preferred|required'/>
///         <same in='rack|power|network|zone' level='preferred|required'/>
///       </placement>
///       <disks copy='all|none' pool='fast' rate='50MiB/s'>
///         <critical target='vda'/>                                               any number
///       </disks>
///       <failure action='none|restart'/>
///       <drift action='notify|swap'>
///         <threshold metric='NAME' value='0.5'/>                                 any number
///       </drift>
///     </policy>
extension DomainPolicy {
    /// The namespace of the element in `<metadata>`; its last part is the version of the grammar.
    public static let namespace = "https://shadow-virt.org/domain/1"
    /// What libvirt writes in front of the element's name.
    static let prefix = "shadow"
    /// A policy is a screenful.
    public static let ceilingBytes = 64 << 10

    /// Parses and checks the element.
    public init(xml: String) throws(ControlFailure) {
        self.init()
        guard xml.utf8.count <= Self.ceilingBytes else { throw ControlFailure("The policy has \(xml.utf8.count) bytes", advice: "Use at most \(Self.ceilingBytes)") }
        guard let root = PolicyElementReader.read(xml) else {
            throw ControlFailure("The policy is no well-formed XML", advice: "`shadow-virt policy DOMAIN get` prints one")
        }
        guard root.name == "policy" else { throw ControlFailure("Unknown element <\(root.name)> where <policy> was expected", advice: "`shadow-virt policy DOMAIN get` prints one") }
        if !root.namespace.isEmpty, root.namespace != Self.namespace { throw ControlFailure("<policy> has the namespace \(root.namespace)", advice: "Use \(Self.namespace)") }
        try read(root)
        if let problem { throw problem }
    }

    private mutating func read(_ root: PolicyElement) throws(ControlFailure) {
        try root.allow(attributes: ["enabled", "shadows", "lifetime"], children: ["engine", "placement", "disks", "failure", "drift"])
        isEnabled = try root.choice("enabled", ["yes": true, "no": false]) ?? isEnabled
        lifetime = try root.choice("lifetime") ?? lifetime
        if let text = root["shadows"] {
            guard let count = Int(text), Self.shadowsRange.contains(count) else { throw root.bad("shadows", "a number from \(Self.shadowsRange.lowerBound) to \(Self.shadowsRange.upperBound)") }
            shadows = count
        }
        for child in root.children {
            switch child.name {
            case "engine": try readEngine(child)
            case "placement": try readPlacement(child)
            case "disks": try readDisks(child)
            case "failure":
                try child.allow(attributes: ["action"])
                onFailure = try child.choice("action") ?? onFailure
            default: try readDrift(child)
            }
        }
    }

    private mutating func readEngine(_ element: PolicyElement) throws(ControlFailure) {
        try element.allow(attributes: ["name", "interval"])
        engine = try element.choice("name") ?? engine
        if let text = element["interval"] {
            do { intervalMs = try Interval.parse(text) } catch { throw ControlFailure("Attribute 'interval' of <engine>: \(error)") }
        }
    }

    private mutating func readPlacement(_ element: PolicyElement) throws(ControlFailure) {
        try element.allow(attributes: [], children: ["host", "differ", "same"], repeated: ["host", "differ", "same"])
        for child in element.children {
            if child.name == "host" {
                try child.allow(attributes: ["name"])
                hosts.append(try child.needed("name"))
            } else {
                try child.allow(attributes: ["in", "level"])
                _ = try child.needed("in")
                guard let relation = Rule.Relation(rawValue: child.name), let label: HostLabel = try child.choice("in") else { continue }
                rules.append(Rule(relation, label, try child.choice("level") ?? .preferred))
            }
        }
    }

    private mutating func readDisks(_ element: PolicyElement) throws(ControlFailure) {
        try element.allow(attributes: ["copy", "pool", "rate"], children: ["critical"], repeated: ["critical"])
        withoutDisks = try element.choice("copy", ["all": false, "none": true]) ?? false
        pool = element["pool"]
        if let text = element["rate"] {
            do { diskRateBytesPerSecond = try DataRate.parse(text) } catch { throw ControlFailure("Attribute 'rate' of <disks>: \(error)") }
        }
        for child in element.children {
            try child.allow(attributes: ["target"])
            criticalDisks.append(try child.needed("target"))
        }
    }

    private mutating func readDrift(_ element: PolicyElement) throws(ControlFailure) {
        try element.allow(attributes: ["action"], children: ["threshold"], repeated: ["threshold"])
        onDrift = try element.choice("action") ?? onDrift
        for child in element.children {
            try child.allow(attributes: ["metric", "value"])
            let metric = try child.needed("metric")
            guard let value = Double(try child.needed("value")), Self.thresholdRange.contains(value) else { throw child.bad("value", "a number from 0 to 1e12") }
            guard thresholds.updateValue(value, forKey: metric) == nil else { throw ControlFailure("There are two thresholds for '\(metric)'", advice: "Remove one of the two") }
        }
    }

    // MARK: Writing

    /// The element, indented, without what is as it would be anyway.
    public var xml: String {
        let root = XMLElement(name: "policy")
        root.set("enabled", isEnabled ? "yes" : "no")
        root.set("shadows", "\(shadows)")
        root.set("lifetime", lifetime.rawValue)
        let engineElement = root.add("engine")
        engineElement.set("name", engine.rawValue)
        if let intervalMs { engineElement.set("interval", Self.number(intervalMs) + "ms") }
        if !hosts.isEmpty || !rules.isEmpty {
            let placement = root.add("placement")
            for host in hosts { placement.add("host").set("name", host) }
            for rule in rules {
                let element = placement.add(rule.relation.rawValue)
                element.set("in", rule.label.rawValue)
                element.set("level", rule.level.rawValue)
            }
        }
        let disks = root.add("disks")
        disks.set("copy", withoutDisks ? "none" : "all")
        if let pool { disks.set("pool", pool) }
        if let rate = diskRateBytesPerSecond { disks.set("rate", rate % (1 << 20) == 0 ? "\(rate >> 20)MiB/s" : "\(rate)") }
        for target in criticalDisks { disks.add("critical").set("target", target) }
        root.add("failure").set("action", onFailure.rawValue)
        let drift = root.add("drift")
        drift.set("action", onDrift.rawValue)
        for (metric, value) in thresholds.sorted(by: { $0.key < $1.key }) {
            let element = drift.add("threshold")
            element.set("metric", metric)
            element.set("value", Self.number(value))
        }
        return root.xmlString(options: [.nodePrettyPrint, .nodeCompactEmptyElement])
    }

    private static func number(_ value: Double) -> String { Int(exactly: value).map(String.init) ?? "\(value)" }
}
