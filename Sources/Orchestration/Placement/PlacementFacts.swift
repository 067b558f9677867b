import ControlProtocol
import Foundation
import Glibc
import Platform

/// What a host says about itself for placement.
public struct PlacementFacts: Codable, Sendable, Equatable {
    public var labels: HostLabels
    /// Memory that shadows there have not touched yet, but may at any time.
    public var reservedBytes: UInt64
    public var isDraining: Bool
}

extension Registry {
    /// Facts of this host, its free memory without what its shadows may still take.
    func facts(_ request: PeerRequest) throws -> HostFacts {
        var facts = try Doctor(environment: environment).facts(request)
        let reserved = reservedBytes(except: request.uuid?.lowercased())
        facts.freeMemoryBytes -= min(facts.freeMemoryBytes, reserved)
        facts.placement = PlacementFacts(labels: environment.configuration.labels, reservedBytes: reserved, isDraining: drains.isDraining)
        return facts
    }

    /// A shadow's memory file grows as pages arrive: what is missing up to its size is promised.
    private func reservedBytes(except uuid: String?) -> UInt64 {
        waitingShadows.filter { $0.uuid != uuid }.reduce(0) { sum, shadow in
            let domain = LocalDomain(uuid: shadow.uuid, name: shadow.name, connect: environment.connect)
            guard let pid = try? domain.processID() else { return sum }
            var seen = Set<UInt64>()
            return openDescriptors(of: pid).filter { $0.target.hasPrefix(GuestMemory.fileName) }.reduce(sum) { sum, descriptor in
                var info = stat()
                guard stat("/proc/\(pid)/fd/\(descriptor.number)", &info) == 0, seen.insert(UInt64(info.st_ino)).inserted else { return sum }
                return sum + UInt64(clamping: info.st_size) - min(UInt64(clamping: info.st_size), UInt64(clamping: info.st_blocks) * 512)
            }
        }
    }
}
