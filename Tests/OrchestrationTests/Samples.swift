import ControlProtocol
import XCTest
@testable import Orchestration

enum Samples {
    static let uuid = "8f8a7c1e-0000-4000-8000-000000000001"

    /// A domain with these `<disk>` elements.
    static func domain(_ disks: String) -> String {
        """
        <domain type='kvm' id='7'><name>web1</name><uuid>\(uuid)</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
          <os><type arch='x86_64' machine='pc'>hvm</type></os>
          <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\(disks)</devices></domain>
        """
    }

    static func definition(_ disks: String) throws -> DomainDefinition { try DomainDefinition(xml: domain(disks)) }

    static func file(_ target: String, _ path: String, format: String = "raw", bus: String = "virtio", device: String = "disk", more: String = "") -> String {
        "<disk type='file' device='\(device)'><driver name='qemu' type='\(format)'/><source file='\(path)'/><target dev='\(target)' bus='\(bus)'/>\(more)</disk>"
    }

    static func facts(_ path: String?, capacity: UInt64 = 1 << 30, pool: String? = nil, volume: String? = nil) -> DiskPlan.Facts {
        DiskPlan.Facts(capacityBytes: capacity, allocationBytes: capacity / 4, path: path, pool: pool, volume: volume)
    }
}

/// The service's failure that `body` throws.
func controlFailure(file: StaticString = #filePath, line: UInt = #line, _ body: () throws -> Void) -> ControlFailure? {
    do {
        try body()
        XCTFail("No failure", file: file, line: line)
    } catch let failure as ControlFailure {
        return failure
    } catch {
        XCTFail("Another error: \(error)", file: file, line: line)
    }
    return nil
}
