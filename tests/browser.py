"""A report in a real Chromium, without a window and without a network.

python -m tests.browser workspace/report/index.html --screenshot page.png
"""

# ruff: noqa: T201 - run as a script it says what it did

import argparse
import base64
import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
SHOWN = "return Array.from(document.querySelectorAll('#table tbody tr')).filter((row) => !row.hidden)"
COLUMN = f"{SHOWN}.map((row) => row.cells[arguments[0]].dataset.v)"
FORMULA, TC = 1, 2  # columns of the table
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


@contextlib.contextmanager
def open_page(page: Path) -> Iterator:
    """Selenium's driver with the page open."""
    from selenium import webdriver

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        quiet = ("headless", "no-sandbox", "disable-dev-shm-usage", "force-prefers-reduced-motion")
        for option in (*quiet, "disable-gpu", "enable-unsafe-swiftshader", "window-size=1280,1600"):
            options.add_argument(f"--{option}")
        options.add_argument(f"--user-data-dir={folder}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            driver.set_page_load_timeout(120)
            driver.execute_cdp_cmd("Network.enable", {})
            offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
            driver.get(page.resolve().as_uri())
            yield driver
        finally:
            driver.quit()


def use_page(driver) -> dict[str, int]:
    """Sort, filter, open the first candidate, read on a phone, print; the console must stay without errors.

    Returns
    -------
    How many rows there are, how many hold the first one's first element, and how many plots the candidate has.
    """
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    form = driver.find_element(By.ID, "filters")
    Select(form.find_element(By.NAME, "status")).select_by_value("")
    rows = len(driver.execute_script(SHOWN))
    assert driver.find_element(By.ID, "shown").text.endswith(f"of {rows} shown")

    head = driver.find_elements(By.CSS_SELECTOR, "#table th button")[TC]
    for descending in (True, False):
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", head)
        head.click()
        column = [float(value) for value in driver.execute_script(COLUMN, TC)]
        assert len(column) == rows
        assert column == sorted(column, reverse=descending)

    formulas = [set(re.findall("[A-Z][a-z]?", formula)) for formula in driver.execute_script(COLUMN, FORMULA)]
    element = min(formulas[0])
    form.find_element(By.NAME, "holds").send_keys(element)
    holding = len(driver.execute_script(SHOWN))
    assert holding == sum(element in one for one in formulas) > 0
    form.find_element(By.NAME, "holds").clear()

    driver.find_element(By.CSS_SELECTOR, "a[data-panel='1']").click()
    panel = driver.find_element(By.ID, "panel-1")
    assert panel.get_attribute("open")
    WebDriverWait(driver, 120).until(lambda _: len(panel.find_elements(By.CSS_SELECTOR, ".plot .main-svg")) >= 3)
    plots = driver.execute_script("return arguments[0].querySelectorAll('.plot').length", panel)
    assert plots == 3

    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert base64.b64decode(driver.print_page()).startswith(b"%PDF")
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    return {"rows": rows, f"rows with {element}": holding, "plots of the first candidate": plots}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshot", help="PNG of the page with the first candidate open")
    arguments = parser.parse_args()
    with open_page(arguments.page) as driver:
        print(use_page(driver))
        if arguments.screenshot:
            driver.save_screenshot(arguments.screenshot)


if __name__ == "__main__":
    main()
