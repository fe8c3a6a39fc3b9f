// Stands in for libusb-1.0.so.0 beside the vendor's compiler: it never finds a stick, and never touches one.
//
//     c++ -shared -fPIC -O1 -Wl,-soname,libusb-1.0.so.0 libusb.cpp -o libusb-1.0.so.0
extern "C" {

// In the program (compile.cpp); absent when something else loads this library.
void ncs2_skip_time() __attribute__((weak));

int libusb_init(void** context) {
    if (context) *context = nullptr;
    return 0;
}
void libusb_exit(void*) {}

long libusb_get_device_list(void*, void*** list) {
    static void* none[1];
    if (ncs2_skip_time) ncs2_skip_time();
    if (list) *list = none;
    return 0;
}
void libusb_free_device_list(void**, int) {}
const char* libusb_strerror(int) { return "there is no USB here"; }

// What needs a device is never reached; -4 is LIBUSB_ERROR_NO_DEVICE.
#define REFUSED(name) \
    int name() { return -4; }
REFUSED(libusb_bulk_transfer)
REFUSED(libusb_claim_interface)
REFUSED(libusb_close)
REFUSED(libusb_detach_kernel_driver)
REFUSED(libusb_free_config_descriptor)
REFUSED(libusb_get_bus_number)
REFUSED(libusb_get_config_descriptor)
REFUSED(libusb_get_device_descriptor)
REFUSED(libusb_get_port_numbers)
REFUSED(libusb_open)
REFUSED(libusb_ref_device)
REFUSED(libusb_release_interface)
REFUSED(libusb_set_configuration)
REFUSED(libusb_unref_device)
}
