import ControlProtocol
import Foundation
import Platform

/// Memory that has to come from certain NUMA nodes (`<numatune><memory mode='strict'/>`).
public struct NUMANeed: Codable, Sendable, Equatable {
    /// As libvirt writes it: "0-1".
    public var nodes: String
    public var byteCount: UInt64
}

extension DomainDefinition {
    var numaNeed: NUMANeed? {
        guard text("numatune/memory/@mode") ?? "strict" == "strict", let nodes = text("numatune/memory/@nodeset") else { return nil }
        return NUMANeed(nodes: nodes, byteCount: memoryBytes)
    }
}

extension NUMANeed {
    /// Whether this host has these nodes, and room on them. Huge pages are counted by themselves.
    func findings(host: String, onHugePages: Bool) -> [Finding] {
        let nodes = NodeSet(nodes).members
        guard let missing = nodes.first(where: { Self.freeBytes(node: $0) == nil }) else {
            let free = nodes.compactMap(Self.freeBytes).reduce(0, +)
            guard onHugePages || free >= byteCount else {
                return [Finding("numa", .failed, "\(host) has \(free >> 20) MiB free on its NUMA nodes \(self.nodes), the shadow needs \(byteCount >> 20) MiB there",
                                advice: "Free memory there, or give the domain <numatune> another mode")]
            }
            return [Finding("numa", .ok, "\(host) has the NUMA nodes \(self.nodes)")]
        }
        return [Finding("numa", .failed, "\(host) has no NUMA node \(missing), which the domain's <numatune> insists on", advice: "Give the domain another nodeset or mode")]
    }

    /// Free memory and file cache that can be dropped; nil: there is no such node.
    private static func freeBytes(node: Int) -> UInt64? {
        guard let text = try? kernelText("/sys/devices/system/node/node\(node)/meminfo") else { return nil }
        return text.split(separator: "\n").reduce(0) { sum, line in
            // "Node 0 MemFree:   123 kB"
            let words = line.split(separator: " ")
            guard words.count >= 4, ["MemFree:", "Inactive(file):"].contains(words[2]), let kibibytes = UInt64(words[3]) else { return sum }
            return sum + kibibytes << 10
        }
    }
}
