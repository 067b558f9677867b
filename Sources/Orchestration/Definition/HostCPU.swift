import Foundation
import FoundationXML

/// `<host><cpu>` of libvirt's capabilities: what a guest with `host-passthrough` sees.
struct HostCPU: Equatable {
    var model: String
    var vendor: String
    var features: Set<String>
    /// A guest is told of it, but needs none of it.
    var microcode: String

    init?(_ xml: String) {
        guard let cpu = try? XMLDocument(xmlString: xml).rootElement(), cpu.name == "cpu" else { return nil }
        func value(_ path: String) -> String { (try? cpu.nodes(forXPath: path))?.first?.stringValue ?? "" }
        model = value("model")
        vendor = value("vendor")
        microcode = value("microcode/@version")
        features = Set(((try? cpu.nodes(forXPath: "feature/@name")) ?? []).compactMap(\.stringValue))
    }

    /// The element, cut out of the capabilities.
    static func element(of capabilities: String) -> String? {
        (try? XMLDocument(xmlString: capabilities).nodes(forXPath: "/capabilities/host/cpu"))?.first?.xmlString
    }

    /// What a guest would miss or find in addition on `other`; empty: the same CPU.
    func differences(to other: HostCPU) -> [String] {
        var differences: [String] = []
        if vendor != other.vendor { differences.append("vendor \(vendor) here, \(other.vendor) there") }
        if model != other.model { differences.append("model \(model) here, \(other.model) there") }
        let missing = features.subtracting(other.features).sorted(), more = other.features.subtracting(features).sorted()
        if !missing.isEmpty { differences.append("missing there: \(missing.joined(separator: ", "))") }
        if !more.isEmpty { differences.append("only there: \(more.joined(separator: ", "))") }
        return differences
    }
}
