import Configuration
import Foundation
import Glibc
import Platform

/// Whether a driver for the BMC of the host itself has anything to talk to, before FreeIPMI does: its own word for a missing device is "internal error", and
/// its `kcs` driver would knock at the usual I/O ports, whoever listens there.
struct InBandCheck {
    private let request: BMCRequest
    private let root: String
    private let mayUsePorts: Bool

    /// - Parameters:
    ///   - root: a folder in the place of `/`, for tests.
    ///   - mayUsePorts: this process may do I/O on ports; nil: look.
    init(_ request: BMCRequest, root: String = "", mayUsePorts: Bool? = nil) {
        self.request = request
        self.root = root
        self.mayUsePorts = mayUsePorts ?? Self.hasRawIO
    }

    /// Why there is nothing to read in band; nil: try.
    var obstacle: BMCFailure? {
        guard request.session == .driver else { return nil }
        switch request.driver {
        case .openipmi:
            return missing("Load the kernel's driver: `modprobe -a ipmi_si ipmi_devintf` (or ipmi_ssif); or read the BMC over the network")
        case .ssif:
            return missing("Load the bus's driver: `modprobe i2c-dev`, and name the BMC's bus in bmc_driver_device; or read the BMC over the network")
        case .kcs:
            return ports
        }
    }

    private func missing(_ advice: String) -> BMCFailure? {
        let device = request.device ?? request.driver.device ?? ""
        // FreeIPMI knows three places of the kernel's device (ipmi-openipmi-driver.c).
        let places = request.device == nil && request.driver == .openipmi ? [device, "/dev/ipmi/0", "/dev/ipmidev/0"] : [device]
        guard !places.contains(where: { access(root + $0, F_OK) == 0 }) else { return nil }
        return BMCFailure(.unreachable, "There is no \(device)", advice: advice)
    }

    private var ports: BMCFailure? {
        if access(root + "/dev/ipmi0", F_OK) == 0 {
            return BMCFailure(.other, "The kernel's driver has the BMC (/dev/ipmi0): a second one would mix up its answers", advice: "Set bmc_driver = \"openipmi\"")
        }
        guard firmwareTellsOfBMC else {
            return BMCFailure(.unreachable, "This host's firmware tells of no BMC: the driver 'kcs' has nothing to talk to", advice: "Read the BMC over the network")
        }
        guard mayUsePorts else {
            return BMCFailure(.refused, "The driver 'kcs' may not use I/O ports", advice: "Run as root; the service needs the drop-in examples/ipmi-ports.conf")
        }
        return nil
    }

    /// ACPI's interface, or SMBIOS' record of type 38 (DSP0134, 7.39).
    private var firmwareTellsOfBMC: Bool {
        let devices = (try? FileManager.default.contentsOfDirectory(atPath: root + "/sys/bus/acpi/devices")) ?? []
        if devices.contains(where: { $0.hasPrefix("IPI0001:") }) { return true }
        guard let table = FileManager.default.contents(atPath: root + "/sys/firmware/dmi/tables/DMI") else { return false }
        return Self.types(Array(table.prefix(1 << 20))).contains(38)
    }

    /// Types of SMBIOS' records: type, length of the formatted part, then strings up to two zero bytes.
    static func types(_ table: [UInt8]) -> [UInt8] {
        var types: [UInt8] = []
        var at = 0
        while at + 4 <= table.count {
            let (type, length) = (table[at], Int(table[at + 1]))
            guard length >= 4, at + length <= table.count else { return types }
            types.append(type)
            at += length
            while at + 1 < table.count, table[at] != 0 || table[at + 1] != 0 { at += 1 }
            at += 2
        }
        return types
    }

    /// CAP_SYS_RAWIO, number 17, among the effective capabilities (capabilities(7)).
    private static var hasRawIO: Bool {
        let line = (try? kernelText("/proc/self/status"))?.split(separator: "\n").first { $0.hasPrefix("CapEff:") }
        let mask = line.flatMap { UInt64($0.dropFirst("CapEff:".count).trimmingCharacters(in: .whitespaces), radix: 16) } ?? 0
        return mask & (1 << 17) != 0
    }
}
